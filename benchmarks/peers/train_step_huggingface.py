"""One pretraining step of Hugging Face's Llama. Started by `groundup bench`."""

import torch
import transformers
from torch_step import TorchStep, autocast
from transformers import LlamaConfig, LlamaForCausalLM


def prepare(options):
    shape = options["shape"]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape["vocab_size"],
            hidden_size=shape["d_model"],
            intermediate_size=shape["d_ff"],
            num_hidden_layers=shape["num_layers"],
            num_attention_heads=shape["num_heads"],
            num_key_value_heads=shape["num_heads"],
            head_dim=shape["d_model"] // shape["num_heads"],
            max_position_embeddings=shape["context_length"],
            tie_word_embeddings=False,
            use_cache=False,
            attn_implementation=options["attention"],
        )
    ).to(options["device"])

    def loss(tokens, targets):
        with autocast(options):
            logits = model(input_ids=tokens).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return TorchStep(model, loss, options, {"transformers": transformers.__version__}).prepared()
