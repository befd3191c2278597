"""A Llama-style model in a GGUF file, both ways: which metadata is which number, which tensor which weight.

llama.cpp's names for architectures are `llama`, `qwen2` (biases on q, k, v) and `qwen3` (normalised heads). In `llama`
the rows of the query and key matrices are in another order, see `groundup.model.interleaved`. A file without
`output.weight` ties the head to the embedding.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from groundup.config import nearest
from groundup.gguf import GGUFFile, write_gguf
from groundup.gguf.blocks import Kind, kind_named
from groundup.model.attention import AttentionConfig
from groundup.model.block import BlockConfig
from groundup.model.families import family_of
from groundup.model.families.family import attention, is_plain, mlp, windows
from groundup.model.feedforward import MLPConfig
from groundup.model.fitting import check_fit, first_of, skeleton
from groundup.model.interleaved import Interleaved
from groundup.model.position import Rope
from groundup.model.transformer import ModelConfig, Transformer

ARCHITECTURES = ("llama", "qwen2", "qwen3")
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}  # general.file_type: the format of most tensors

NAMES = {
    "embed": "token_embd",
    "blocks.{i}.mixer_norm": "blk.{i}.attn_norm",
    "blocks.{i}.mixer.wq": "blk.{i}.attn_q",
    "blocks.{i}.mixer.wk": "blk.{i}.attn_k",
    "blocks.{i}.mixer.wv": "blk.{i}.attn_v",
    "blocks.{i}.mixer.wo": "blk.{i}.attn_output",
    "blocks.{i}.mixer.q_norm": "blk.{i}.attn_q_norm",
    "blocks.{i}.mixer.k_norm": "blk.{i}.attn_k_norm",
    "blocks.{i}.ffn_norm": "blk.{i}.ffn_norm",
    "blocks.{i}.ffn.gate": "blk.{i}.ffn_gate",
    "blocks.{i}.ffn.up": "blk.{i}.ffn_up",
    "blocks.{i}.ffn.down": "blk.{i}.ffn_down",
    "final_norm": "output_norm",
    "head": "output",
}


def load_gguf(path: str | Path) -> Transformer:
    """The model of a GGUF file, its weights dequantised to float32. `Tokenizer.load` reads its tokenizer.

    Raises ValueError for an architecture, a feature or a type of tensor that is not supported, for names or shapes
    that differ from what the metadata says (they are listed), for weights that are not finite, and for damage.
    """
    with GGUFFile(path) as file:
        shapes = {name: info.shape for name, info in file.tensors.items()}
        try:
            config = config_from_gguf(file.metadata, shapes)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        model = skeleton(config, len(shapes), f"{path}: its metadata")
        ours = dict(model.named_parameters())
        expected = {gguf_name(name): tuple(parameter.shape) for name, parameter in ours.items()}
        check_fit(expected, shapes, str(path), "the metadata")
        state = {name: _imported(file, name, config) for name in ours}
    broken = [gguf_name(name) for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"{path}: {len(broken)} tensors hold NaN or infinity: {first_of(broken)}")
    model.load_state_dict(state, assign=True)
    return model


def save_gguf(
    model: Transformer,
    path: str | Path,
    tokenizer_metadata: Mapping[str, Any] | None = None,
    dtype: str = "f16",
    name: str = "groundup",
) -> None:
    """Write a model so that llama.cpp runs it. `tokenizer_metadata` is from `groundup.tokenizer.gguf.to_metadata`.

    `dtype` (f32, f16, bf16 or q8_0) is for matrices; vectors stay float32. Rows that are no multiple of 32 are not
    whole blocks of q8_0, and are written as f16. ValueError, with the reason, for what llama.cpp has no name for.
    """
    kind = kind_named(dtype)
    if kind.name not in FILE_TYPES:
        raise ValueError(f"dtype {dtype!r} is read only; expected one of {', '.join(FILE_TYPES).lower()}")
    metadata = {"general.type": "model", "general.name": name, "general.file_type": FILE_TYPES[kind.name]}
    metadata |= {"general.quantization_version": 2, **config_to_gguf(model.config)}
    if tokenizer_metadata is None:
        tokenizer_metadata = {"tokenizer.ggml.model": "none"}
    tensors = {}
    for ours, parameter in model.named_parameters():
        value = _exported(ours, parameter.detach().float().cpu(), model.config)
        if not value.isfinite().all():
            raise ValueError(f"{ours}: holds NaN or infinity; such a model is not written")
        tensors[gguf_name(ours)] = (_kind_for(value, kind), value.numpy())
    write_gguf(path, {**metadata, **tokenizer_metadata}, tensors)


def gguf_name(name: str) -> str:
    """The tensor in a GGUF file that holds our parameter `name`.

    >>> gguf_name("blocks.3.mixer.wq.weight")
    'blk.3.attn_q.weight'
    """
    module, _, leaf = name.rpartition(".")
    steps = module.split(".")
    layer = steps[1] if steps[0] == "blocks" else ""
    key = ".".join(["blocks", "{i}", *steps[2:]]) if layer else module
    return f"{NAMES[key].format(i=layer)}.{leaf}"


def _kind_for(value: Tensor, kind: Kind) -> Kind:
    if value.ndim == 1:
        return kind_named("f32")
    return kind if value.shape[-1] % kind.size == 0 else kind_named("f16")


def _imported(file: GGUFFile, name: str, config: ModelConfig) -> Tensor:
    value = torch.from_numpy(file.read(gguf_name(name)))
    order = _order(name, config)
    return value if order is None else order.to_half_split(value)


def _exported(name: str, value: Tensor, config: ModelConfig) -> Tensor:
    order = _order(name, config)
    return value if order is None else order.to_pairs(value)


def _order(name: str, config: ModelConfig) -> Interleaved | None:
    """How llama.cpp keeps the rows of a parameter, where that is not as here."""
    if family_of(config) != "llama" or name.split(".")[-2] not in ("wq", "wk"):
        return None
    d_head = attention(config.block(0)).d_head
    return Interleaved(d_head, d_head)


# metadata --------------------------------------------------------------------------------------------------------


def config_to_gguf(config: ModelConfig) -> dict[str, Any]:
    """The architecture's part of the metadata. ValueError says what in `config` llama.cpp has no name for."""
    family = family_of(config)
    reasons = {f"{family}'s architecture": family not in ARCHITECTURES} | _unnamed(config)
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise ValueError(f"no GGUF is written for this model: {'; '.join(found)}")
    mixer, ffn = attention(config.block(0)), mlp(config.block(0))
    assert mixer.rope is not None
    sizes = {
        "block_count": config.num_layers,
        "context_length": config.context_length,
        "embedding_length": config.d_model,
        "feed_forward_length": ffn.d_ff,
        "vocab_size": config.vocab_size,
        "attention.head_count": mixer.num_heads,
        "attention.head_count_kv": mixer.num_kv_heads,
        "attention.key_length": mixer.d_head,
        "attention.value_length": mixer.d_head,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.dimension_count": mixer.d_head,
        "rope.freq_base": float(mixer.rope.theta),
    }
    return {"general.architecture": family} | {f"{family}.{key}": value for key, value in sizes.items()}


def _unnamed(config: ModelConfig) -> dict[str, bool]:
    """What llama.cpp has no names for, in models of attention and MLPs."""
    if not is_plain(config):
        return {}
    mixer, ffn = attention(config.block(0)), mlp(config.block(0))
    return {
        f"activation {ffn.activation!r} instead of silu": ffn.activation != "silu",
        "windows": any(window is not None for window in windows(config)),
        "a rotary embedding that is scaled or turns some channels": mixer.rope not in (None, Rope(_theta(mixer))),
    }


def _theta(mixer: AttentionConfig) -> float:
    return Rope().theta if mixer.rope is None else mixer.rope.theta


def config_from_gguf(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """The config of a file with this metadata and tensors of these shapes.

    ValueError names the key that is missing or has a value that is not supported.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        known = f"expected one of {', '.join(ARCHITECTURES)}{nearest(str(architecture), ARCHITECTURES)}"
        raise ValueError(f"general.architecture: {architecture!r:.60} is not supported; {known}")
    read = _Reader(metadata, architecture)
    _refuse_unsupported(read, shapes)
    d_model, heads = read.size("embedding_length"), read.size("attention.head_count")
    d_head = read.size("attention.key_length", max(d_model // heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        read.expect(key, d_head)
    mixer = AttentionConfig(
        num_heads=heads,
        num_kv_heads=read.size("attention.head_count_kv", heads),
        d_head=d_head,
        rope=Rope(read.number("rope.freq_base", 10_000.0)),
        qk_norm=architecture == "qwen3",
        bias="blk.0.attn_q.bias" in shapes,
        out_bias="blk.0.attn_output.bias" in shapes,
    )
    ffn = MLPConfig(read.size("feed_forward_length"), bias="blk.0.ffn_gate.bias" in shapes)
    rows = shapes.get("token_embd.weight", (0,))[0]
    return ModelConfig(
        vocab_size=read.size("vocab_size", rows),
        d_model=d_model,
        num_layers=read.size("block_count"),
        blocks=(BlockConfig(mixer, ffn),),
        context_length=read.size("context_length"),
        tie_embeddings="output.weight" not in shapes,
        norm_eps=read.number("attention.layer_norm_rms_epsilon"),
    )


def _refuse_unsupported(read: "_Reader", shapes: Mapping[str, tuple[int, ...]]) -> None:
    read.expect("rope.scaling.type", "none")
    for key in ("expert_count", "attention.sliding_window"):
        read.expect(key, 0)
    if "rope_freqs.weight" in shapes:
        raise ValueError("rope_freqs.weight: rotary frequencies of their own (Llama 3.1's) are not supported")


class _Reader:
    """The keys of one architecture, each with a check of its type."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self._metadata, self._prefix = metadata, architecture

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer."""
        value = self._value(key, default)
        if type(value) is not int or value < 1:
            raise ValueError(f"{self._prefix}.{key}: {value!r:.60}; expected an integer of at least 1")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number, in the fewest decimals that give the same float32: 1e-05, not 9.99999974737875e-06."""
        value = self._value(key, default)
        if type(value) is not float or not 0 < value < float("inf"):
            raise ValueError(f"{self._prefix}.{key}: {value!r:.60}; expected a positive number")
        return float(str(np.float32(value)))

    def expect(self, key: str, only: Any) -> None:
        """ValueError for a value other than the one that is supported; a key that is not there has it."""
        value = self._metadata.get(f"{self._prefix}.{key}", only)
        if type(value) is not type(only) or value != only:
            raise ValueError(f"{self._prefix}.{key}: {value!r:.60} is not supported; expected {only!r}")

    def _value(self, key: str, default: Any) -> Any:
        value = self._metadata.get(f"{self._prefix}.{key}", default)
        if value is None:
            raise ValueError(f"{self._prefix}.{key} is missing")
        return value
