"""Decode steps of litgpt's GPT with its own cache, as `litgpt generate` runs them. Started by `groundup bench`."""

from importlib.metadata import version
from pathlib import Path

import torch
from litgpt import GPT, Config
from litgpt.generate.base import batched_next_token
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from safetensors.torch import load_file


def load(options):
    """The weights that the other programs have, in bfloat16."""
    shape = options["shape"]
    heads = shape["num_heads"]
    config = Config(
        name="bench", block_size=shape["context_length"], vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"], n_layer=shape["num_layers"], n_head=heads,
        n_query_groups=shape.get("num_kv_heads", heads), n_embd=shape["d_model"], head_size=shape["d_model"] // heads,
        intermediate_size=shape["d_ff"], rotary_percentage=1.0, parallel_residual=False, bias=False,
        norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", rope_base=int(shape.get("rope_theta", 10_000)),
    )  # fmt: skip
    found, state = load_file(Path(options["folder"]) / "model.safetensors"), {}
    copy_weights_hf_llama(config, {}, state, found)  # with a head that is the embedding, if there is none
    model = GPT(config).bfloat16()
    model.load_state_dict(state, strict=True)
    return model.eval()


def prepare(options):
    torch.set_num_threads(options["threads"])
    batch, prompt, new = options["batch"], options["prompt"], options["new"]
    model = load(options)
    model.max_seq_length = prompt + new + 1
    model.set_kv_cache(batch_size=batch)
    prompts = torch.randint(options["shape"]["vocab_size"], (batch, prompt), generator=torch.Generator().manual_seed(0))
    greedy = {"temperature": 0.0}
    compiled = torch.compile(batched_next_token, dynamic=False) if options["compile"] else batched_next_token

    @torch.inference_mode()
    def read(rows):
        return batched_next_token(model, torch.arange(prompt), rows, greedy)

    first = read(prompts).view(batch, 1)

    @torch.inference_mode()
    def decode(steps):
        for step in range(steps):
            if step % new == 0:
                tokens, place = first, torch.tensor([prompt])
            tokens, place = compiled(model, place, tokens, greedy).view(batch, 1), place + 1
        return {"peak_bytes": 0}

    def prefill(times):
        for _ in range(times):
            read(prompts)
        return {"peak_bytes": 0}

    facts = {"threads": torch.get_num_threads(), "versions": {"litgpt": version("litgpt")}}
    return facts, prefill if options["mode"] == "prefill" else decode
