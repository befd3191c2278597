"""One pretraining step of litgpt's GPT in a Llama shape. Started by `groundup bench`."""

from importlib.metadata import version

import torch
from litgpt import GPT, Config
from litgpt.utils import chunked_cross_entropy
from torch_step import TorchStep, autocast


def prepare(options):
    shape = options["shape"]
    torch.manual_seed(0)
    config = Config(
        name="bench",
        block_size=shape["context_length"],
        vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"],
        n_layer=shape["num_layers"],
        n_head=shape["num_heads"],
        n_embd=shape["d_model"],
        head_size=shape["d_model"] // shape["num_heads"],
        intermediate_size=shape["d_ff"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    model = GPT(config)
    model.apply(model._init_weights)
    model = model.to(options["device"])

    def loss(tokens, targets):
        with autocast(options):
            logits = model(tokens)
        return chunked_cross_entropy(logits.float(), targets, chunk_size=options["loss_chunk"])

    return TorchStep(model, loss, options, {"litgpt": version("litgpt")}).prepared()
