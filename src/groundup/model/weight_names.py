"""Where each of our parameters is in a Hugging Face file, and in which layout."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Where a module's parameters are in a Hugging Face file; {i} is the layer.

    `transposed`: weights are (d_in, d_out), as in GPT-2's Conv1D. `part`: the n-th of three matrices fused
    along their outputs.
    """

    name: str
    transposed: bool = False
    part: int | None = None


LLAMA_PLACES = {
    "embed": Place("model.embed_tokens"),
    "blocks.{i}.mixer_norm": Place("model.layers.{i}.input_layernorm"),
    "blocks.{i}.mixer.wq": Place("model.layers.{i}.self_attn.q_proj"),
    "blocks.{i}.mixer.wk": Place("model.layers.{i}.self_attn.k_proj"),
    "blocks.{i}.mixer.wv": Place("model.layers.{i}.self_attn.v_proj"),
    "blocks.{i}.mixer.wo": Place("model.layers.{i}.self_attn.o_proj"),
    "blocks.{i}.mixer.q_norm": Place("model.layers.{i}.self_attn.q_norm"),
    "blocks.{i}.mixer.k_norm": Place("model.layers.{i}.self_attn.k_norm"),
    "blocks.{i}.ffn_norm": Place("model.layers.{i}.post_attention_layernorm"),
    "blocks.{i}.ffn.gate": Place("model.layers.{i}.mlp.gate_proj"),
    "blocks.{i}.ffn.up": Place("model.layers.{i}.mlp.up_proj"),
    "blocks.{i}.ffn.down": Place("model.layers.{i}.mlp.down_proj"),
    "final_norm": Place("model.norm"),
    "head": Place("lm_head"),
}

GPT2_PLACES = {
    "embed": Place("transformer.wte"),
    "positions": Place("transformer.wpe"),
    "blocks.{i}.mixer_norm": Place("transformer.h.{i}.ln_1"),
    "blocks.{i}.mixer.wq": Place("transformer.h.{i}.attn.c_attn", transposed=True, part=0),
    "blocks.{i}.mixer.wk": Place("transformer.h.{i}.attn.c_attn", transposed=True, part=1),
    "blocks.{i}.mixer.wv": Place("transformer.h.{i}.attn.c_attn", transposed=True, part=2),
    "blocks.{i}.mixer.wo": Place("transformer.h.{i}.attn.c_proj", transposed=True),
    "blocks.{i}.ffn_norm": Place("transformer.h.{i}.ln_2"),
    "blocks.{i}.ffn.up": Place("transformer.h.{i}.mlp.c_fc", transposed=True),
    "blocks.{i}.ffn.down": Place("transformer.h.{i}.mlp.c_proj", transposed=True),
    "final_norm": Place("transformer.ln_f"),
    "head": Place("lm_head"),
}

# Tables that older files hold beside the weights: causal masks and rotary frequencies.
IGNORED_ENDINGS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


def export_tensors(family: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters under a Hugging Face class's names and layouts."""
    parts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        their_name, place = _locate(family, name)
        value = tensor.T if place.transposed and tensor.ndim == 2 else tensor
        parts.setdefault(their_name, {})[place.part or 0] = value
    return {name: torch.cat([group[i] for i in sorted(group)], -1) for name, group in parts.items()}


def import_tensor(family: str, name: str, theirs: Tensor) -> Tensor:
    """Our parameter `name`, taken from the tensor that holds it in a Hugging Face file."""
    _, place = _locate(family, name)
    value = theirs if place.part is None else theirs.chunk(3, -1)[place.part]
    return value.T if place.transposed and theirs.ndim == 2 else value


def exported_shapes(family: str, state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """What `export_tensors` would give, as shapes only."""
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    return {name: tuple(tensor.shape) for name, tensor in export_tensors(family, meta).items()}


def exported_name(family: str, name: str) -> str:
    """The name of the tensor in a Hugging Face file that holds our parameter `name`."""
    return _locate(family, name)[0]


def _locate(family: str, name: str) -> tuple[str, Place]:
    path, _, leaf = name.rpartition(".")
    steps = path.split(".")
    layer = steps[1] if steps[0] == "blocks" else ""
    key = ".".join(["blocks", "{i}", *steps[2:]]) if layer else path
    place = (GPT2_PLACES if family == "gpt2" else LLAMA_PLACES)[key]
    return f"{place.name.format(i=layer)}.{leaf}", place


def base_prefix(family: str) -> str:
    """What a causal model puts before its inner model's names; the inner model's own files leave it out."""
    return "transformer." if family == "gpt2" else "model."


def known_names(names: Iterable[str], family: str) -> dict[str, str]:
    """The names in a file by their full spelling, without the tables that are not weights."""
    prefix, names = base_prefix(family), list(names)
    bare = not any(name.startswith(prefix) for name in names)
    full = {prefix + n if bare and not n.startswith("lm_head.") else n: n for n in names}
    return {f: n for f, n in full.items() if not f.endswith(IGNORED_ENDINGS)}
