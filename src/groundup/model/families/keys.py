"""Typed values out of a config.json, which anyone may have written: each refusal names the key, value and remedy."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from groundup.config import nearest

Keys = Mapping[str, Any]

# Bounds that no model reaches and that keep every product of sizes inside a 64-bit integer.
MOST_LAYERS = 2**12
MOST_HEADS = 2**16
MOST_WIDTH = 2**20
MOST = 2**40

# The first name of each is the one written; gelu_new is GPT-2's word for the tanh approximation.
ACTIVATION_NAMES = {
    "silu": ("silu", "swish"),
    "gelu": ("gelu",),
    "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast"),
    "relu": ("relu",),
    "relu2": ("relu2",),
    "sigmoid": ("sigmoid",),
    "identity": ("linear",),
}

NEUTRAL = {
    "quantization_config": None,
    "attention_multiplier": None, "residual_multiplier": 1.0, "embedding_multiplier": 1.0,
    "logits_scaling": 1.0, "logit_scale": 1.0,
    "attn_logit_softcapping": None, "final_logit_softcapping": None, "clip_qkv": None,
    "alibi": False, "use_alibi": False, "use_parallel_residual": False, "parallel_attn": False,
    "attention_bias": False, "mlp_bias": False, "use_qk_norm": False, "qk_layernorm": False,
    "use_bidirectional_attention": False, "is_causal": True, "add_cross_attention": False,
    "partial_rotary_factor": 1.0, "rope_interleaved": False, "use_mrope": False, "no_rope_layers": None,
    "num_experts": None, "num_local_experts": None, "n_routed_experts": None,
}  # fmt: skip
"""Keys that change what a model computes, with the value at which they change nothing (as null does).

A family reads some of these; the others must be neutral. Keys in neither list are about training, generation or
bookkeeping, and are passed over.
"""


def check_neutral(data: Keys, reads: frozenset[str], fixed: Keys, architecture: str) -> None:
    """ValueError for a key that changes the numbers and that this family does not read."""
    for key, neutral in {**{k: v for k, v in NEUTRAL.items() if k not in reads}, **fixed}.items():
        given = data.get(key)
        if given is not None and (type(given) in (dict, list) or given != neutral):
            allowed = "no such key" if neutral is None else f"{neutral}"
            raise ValueError(f"{key}={given!r:.80} is not supported in {architecture}; expected {allowed}")


def size(data: Keys, key: str, default: int | None = None, most: int = MOST) -> int:
    """A positive integer; null and a missing key are the default."""
    return count(data, key, default, most, least=1)


def count(data: Keys, key: str, default: int | None = None, most: int = MOST, least: int = 0) -> int:
    """An integer of at least `least`; null and a missing key are the default."""
    value = data.get(key)
    value = default if value is None else value
    if value is None:
        raise ValueError(f"{key} is missing; expected an integer of at least {least}")
    if type(value) is not int or value < least:
        raise ValueError(f"{key}={value!r:.80}; expected an integer of at least {least}")
    if value > most:
        raise ValueError(f"{key}={value!r:.80}; expected an integer of at most {most}")
    return value


def number(data: Keys, key: str, default: float | None = None, *, above: float = 0.0) -> float:
    """A finite number above `above`; null and a missing key are the default."""
    value = data.get(key)
    value = default if value is None else value
    if value is None:
        raise ValueError(f"{key} is missing; expected a number above {above:g}")
    if type(value) not in (int, float) or not _is_finite(value) or not value > above:
        raise ValueError(f"{key}={value!r:.80}; expected a number above {above:g}")
    return float(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def optional(data: Keys, key: str, default: float | None = None) -> float | None:
    """As `number`, where null means that there is none; `default` is for a missing key."""
    return None if data.get(key, default) is None else number(data, key, default)


def flag(data: Keys, key: str, default: bool) -> bool:
    """true or false; null and a missing key are the default."""
    value = data.get(key)
    value = default if value is None else value
    if type(value) is not bool:
        raise ValueError(f"{key}={value!r:.80}; expected true or false")
    return value


def table(data: Keys, key: str) -> Keys:
    """A JSON object; null and a missing key are an empty one."""
    value = data.get(key)
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise ValueError(f"{key}={value!r:.80}; expected a JSON object")
    return value


def word(data: Keys, key: str, allowed: Sequence[str], default: str) -> str:
    """One of the allowed words; null and a missing key are the default."""
    value = data.get(key)
    value = default if value is None else value
    if value not in allowed:
        raise ValueError(f"{key}={value!r:.80} is not supported{nearest(str(value)[:80], allowed)}")
    return value


def activation(data: Keys, key: str, default: str) -> Any:
    """Our name of the activation."""
    names = {theirs: ours for ours, names in ACTIVATION_NAMES.items() for theirs in names}
    return names[word(data, key, list(names), default)]


def attention_sizes(data: Keys, default_d_head: int | None = None) -> tuple[int, int, int, int]:
    """(d_model, query heads, key/value heads, d_head), which is d_model / heads where neither file nor class says."""
    d_model = size(data, "hidden_size", most=MOST_WIDTH)
    heads = size(data, "num_attention_heads", most=MOST_HEADS)
    kv_heads = size(data, "num_key_value_heads", heads, most=MOST_HEADS)
    d_head = size(data, "head_dim", default_d_head or max(1, d_model // heads), most=MOST_HEADS)
    return d_model, heads, kv_heads, d_head


FULL, SLIDING = "full_attention", "sliding_attention"


def layer_types(data: Keys, default: list[str]) -> list[str]:
    """Which layers have a window, as the shortest list that repeats to all of them."""
    layers = len(default)
    types = data.get("layer_types")
    types = default if types is None else types
    if not isinstance(types, list) or len(types) != layers or not all(t in (FULL, SLIDING) for t in types):
        raise ValueError(f"layer_types={types!r:.80}; expected {layers} of {FULL!r} and {SLIDING!r}")
    return shortest(types)


def shortest(items: list[Any]) -> list[Any]:
    """The shortest beginning that repeats to the whole."""
    return items[: next(p for p in range(1, len(items) + 1) if items[p:] == items[:-p])]
