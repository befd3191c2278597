"""Rotary embeddings in a config.json, both ways: the base, and the scalings under their names there.

transformers 4 keeps rope_theta beside an object rope_scaling, 5 both in an object rope_parameters. Both are read,
and both are written, so that neither version misses a scaling.
"""

from typing import Any

from groundup.config import nearest
from groundup.model.families.keys import Keys, flag, number, optional, size, table
from groundup.model.position import Rope
from groundup.model.rope_scaling import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling, yarn_amplitude

COMMON = ("type", "rope_type", "rope_theta", "partial_rotary_factor")
KINDS = {
    "default": None,  # whatever else stands there is not looked at
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale",
        "mscale_all_dim", "truncate",
    ),
}  # fmt: skip


def rope_keys(data: Keys) -> Keys:
    """The object with the rotary embedding's keys, empty where there is none. ValueError where two disagree."""
    old, new = table(data, "rope_scaling"), table(data, "rope_parameters")
    differing = [key for key in old.keys() & new.keys() if old[key] != new[key]]
    if differing:
        raise ValueError(f"rope_scaling and rope_parameters differ in {sorted(differing)[0]}; keep one of them")
    return {**new, **old}


def read_rope(data: Keys, theta: float = 10_000.0) -> Rope:
    """ValueError names the key that is missing or that no scaling here has."""
    return parse_rope(rope_keys(data), data, number(data, "rope_theta", theta, above=1.0))


def parse_rope(keys: Keys, data: Keys, theta: float) -> Rope:
    """The embedding of one such object; `data` is the whole file."""
    kind = keys.get("rope_type", keys.get("type", "default"))
    if not isinstance(kind, str) or kind not in KINDS:
        known = nearest(str(kind)[:40], KINDS)
        raise ValueError(f"rope_type={kind!r:.40} is not supported{known}")
    unread = [key for key in keys if KINDS[kind] is not None and key not in COMMON + (KINDS[kind] or ())]
    if unread:
        allowed = ", ".join(KINDS[kind] or ())
        raise ValueError(f"rope_parameters: {unread[0]!r:.40} is not supported with rope_type {kind!r}; use {allowed}")
    if number(keys, "partial_rotary_factor", 1.0) != 1.0 or keys.get("mrope_section") is not None:
        raise ValueError("rope_parameters: partial_rotary_factor and mrope_section are not supported; leave them out")
    return Rope(number(keys, "rope_theta", theta, above=1.0), scaling=_scaling(kind, keys, data))


def _scaling(kind: str, keys: Keys, data: Keys) -> RopeScaling | None:
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(number(keys, "factor"))
    length = size(data, "max_position_embeddings", 2048)
    trained = size(data, "original_max_position_embeddings", size(keys, "original_max_position_embeddings", length))
    if kind == "llama3":
        turns = number(keys, "low_freq_factor"), number(keys, "high_freq_factor")
        return Llama3Scaling(number(keys, "factor"), *turns, trained)
    factor = number(keys, "factor", length / trained)
    return YarnScaling(
        factor,
        trained,
        fast_turns=number(keys, "beta_fast", 32.0),
        slow_turns=number(keys, "beta_slow", 1.0),
        given_amplitude=_amplitude(keys, factor),
        rounded=flag(keys, "truncate", True),
    )


def _amplitude(keys: Keys, factor: float) -> float | None:
    """Given outright, or as the ratio of DeepSeek's two, or left to YaRN."""
    given = optional(keys, "attention_factor")
    if given is not None or not (keys.get("mscale") and keys.get("mscale_all_dim")):
        return given
    above, below = (yarn_amplitude(factor, number(keys, key)) for key in ("mscale", "mscale_all_dim"))
    return above / below


def write_rope(rope: Rope) -> dict[str, Any]:
    """The keys that say this embedding, for both versions. ValueError for a scaling that no class there has."""
    parameters = rope_parameters(rope)
    both = {} if rope.scaling is None else {"rope_scaling": parameters}
    return {"rope_theta": rope.theta, "rope_parameters": parameters, **both}


def rope_parameters(rope: Rope) -> dict[str, Any]:
    """The object that says this embedding."""
    match rope.scaling:
        case None:
            return {"rope_type": "default", "rope_theta": rope.theta}
        case LinearScaling(factor):
            return {"rope_type": "linear", "rope_theta": rope.theta, "factor": factor}
        case Llama3Scaling() as s:
            keys: dict[str, Any] = {"low_freq_factor": s.low_turns, "high_freq_factor": s.high_turns}
            kind, factor, trained = "llama3", s.factor, s.original_context
        case YarnScaling() as s:
            keys = {"beta_fast": s.fast_turns, "beta_slow": s.slow_turns, "truncate": s.rounded}
            keys |= {} if s.given_amplitude is None else {"attention_factor": s.given_amplitude}
            kind, factor, trained = "yarn", s.factor, s.original_context
        case other:
            raise ValueError(f"no Hugging Face class expresses this model: {type(other).__name__} of its positions")
    common = {"rope_type": kind, "rope_theta": rope.theta, "factor": factor}
    return {**common, "original_max_position_embeddings": trained, **keys}
