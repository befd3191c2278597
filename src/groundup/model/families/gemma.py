"""Gemma 2 and 3: a norm before and after every layer, scaled embeddings, local layers between global ones.

Their norms multiply by 1 + w, with w near zero: ours hold the sum. Gemma 2 caps scores and logits, Gemma 3 normalises
heads instead, and its local layers have a rotary base of their own. Embeddings are scaled by sqrt(d_model), which
`transformers` rounds to the weights' type: a bfloat16 model of 2560 channels multiplies by 50.5, not by 50.596.

Gemma Team 2024 (arXiv:2408.00118), 2025 (arXiv:2503.19786).
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

from groundup.model.attention import AttentionConfig
from groundup.model.block import BlockConfig
from groundup.model.families.family import (
    Family,
    Reasons,
    attention,
    is_plain,
    undivided,
    used_blocks,
)
from groundup.model.families.keys import (
    FULL,
    MOST_LAYERS,
    SLIDING,
    Keys,
    activation,
    flag,
    layer_types,
    number,
    optional,
    size,
    table,
)
from groundup.model.families.llama import (
    LLAMA_PLACES,
    read_attention,
    read_model,
    write_activation,
    write_attention,
    write_layer_types,
)
from groundup.model.families.rotary import parse_rope, rope_parameters
from groundup.model.feedforward import MLPConfig
from groundup.model.position import Rope
from groundup.model.transformer import ModelConfig
from groundup.model.weight_names import Place

LOCAL_THETA, GLOBAL_THETA = 10_000.0, 1_000_000.0
PATTERN = 6  # every sixth layer of Gemma 3 is global

NORMS = {
    "blocks.{i}.mixer_norm": "model.layers.{i}.input_layernorm",
    "blocks.{i}.mixer_post_norm": "model.layers.{i}.post_attention_layernorm",
    "blocks.{i}.ffn_norm": "model.layers.{i}.pre_feedforward_layernorm",
    "blocks.{i}.ffn_post_norm": "model.layers.{i}.post_feedforward_layernorm",
    "blocks.{i}.mixer.q_norm": "model.layers.{i}.self_attn.q_norm",
    "blocks.{i}.mixer.k_norm": "model.layers.{i}.self_attn.k_norm",
    "final_norm": "model.norm",
}
GEMMA_PLACES = LLAMA_PLACES | {ours: Place(theirs, offset=1.0) for ours, theirs in NORMS.items()}


def claims(config: ModelConfig, family: str) -> bool:
    if not is_plain(config) or config.block(0).placement != "sandwich":
        return False
    return bool(attention(config.block(0)).qk_norm) == (family == "gemma3_text")


def reasons(config: ModelConfig, family: str) -> Reasons:
    blocks, gemma3 = used_blocks(config), family == "gemma3_text"
    first = attention(blocks[0])
    local = [attention(b) for b in blocks if attention(b).window is not None]
    scalar = _scalar(first)
    return [
        (not config.scale_embeddings, "placement 'sandwich' without scale_embeddings"),
        (first.rope is None, "placement 'sandwich' without a rotary embedding"),
        (gemma3 and first.softcap is not None, "attention softcap with qk_norm"),
        (not math.isclose(scalar, round(scalar), rel_tol=1e-9), f"scale of scores: {first.scale} is no 1 / sqrt(n)"),
        (len({mixer.window for mixer in local}) > 1, "windows of different sizes"),
        (gemma3 and any(b.rope is not None and b.rope.scaling for b in local), "rotary scaling in local layers"),
        undivided(config),
    ]


def _scalar(mixer: AttentionConfig) -> float:
    return mixer.d_head if mixer.scale is None else mixer.scale**-2


def write(config: ModelConfig, family: str) -> dict[str, Any]:
    mixers = [attention(b) for b in used_blocks(config)]
    window = next((m.window for m in mixers if m.window is not None), None)
    common = write_attention(config) | {
        "hidden_activation": write_activation(config),
        "intermediate_size": getattr(config.block(0).ffn, "d_ff", 0),
        "query_pre_attn_scalar": round(_scalar(mixers[0])),
        "sliding_window": window,
        "layer_types": write_layer_types(config),
        "attention_bias": mixers[0].bias,
        "final_logit_softcapping": config.logit_softcap,
        "attn_logit_softcapping": mixers[0].softcap,
    }
    return common if family == "gemma2" else common | _write_ropes(mixers)


def _write_ropes(mixers: list[AttentionConfig]) -> dict[str, Any]:
    """A rotary embedding for each kind of layer; a kind that does not occur gets the class's own."""
    local = next((m.rope for m in mixers if m.window is not None and m.rope), Rope(LOCAL_THETA))
    wide = next((m.rope for m in mixers if m.window is None and m.rope), Rope(GLOBAL_THETA))
    parameters = {SLIDING: rope_parameters(local), FULL: rope_parameters(wide)}
    old = {"rope_theta": wide.theta, "rope_local_base_freq": local.theta}
    old |= {"rope_scaling": rope_parameters(wide) if wide.scaling else None}
    return {"rope_parameters": parameters, **old}


def read(data: Keys, family: str) -> ModelConfig:
    gemma3 = family == "gemma3_text"
    biased = flag(data, "attention_bias", False)
    act = activation(data, "hidden_activation", "gelu_pytorch_tanh")
    ffn = MLPConfig(size(data, "intermediate_size"), activation=act)
    ropes = _read_ropes(data) if gemma3 else {}
    flat = data if not gemma3 else {k: v for k, v in data.items() if k not in ("rope_parameters", "rope_scaling")}
    mixer = read_attention({"num_key_value_heads": 4, **flat}, 256)
    scalar = number(data, "query_pre_attn_scalar", 256)
    mixer = replace(
        mixer,
        qk_norm=gemma3,
        bias=biased,
        out_bias=biased,
        softcap=None if gemma3 else optional(data, "attn_logit_softcapping", 50.0),
        scale=None if scalar == mixer.d_head else scalar**-0.5,
    )
    kinds = _types(data, gemma3)
    windows = {FULL: None, SLIDING: _window(data) if SLIDING in kinds else None}
    mixers = [replace(mixer, window=windows[kind], rope=ropes.get(kind, mixer.rope)) for kind in kinds]
    blocks = tuple(BlockConfig(mixer, ffn, placement="sandwich") for mixer in mixers)
    cap = optional(data, "final_logit_softcapping", None if gemma3 else 30.0)
    model = read_model({"max_position_embeddings": 131_072 if gemma3 else 8192, **flat}, blocks, tied=True)
    return replace(model, scale_embeddings=True, logit_softcap=cap)


def _window(data: Keys) -> int:
    if data.get("sliding_window", 0) is None:
        raise ValueError(f"sliding_window=None, yet layer_types has {SLIDING!r}; expected an integer of at least 1")
    return size(data, "sliding_window", 4096)


def _types(data: Keys, gemma3: bool) -> list[str]:
    layers = size(data, "num_hidden_layers", most=MOST_LAYERS)
    period = size(data, "sliding_window_pattern", PATTERN) if gemma3 else 2
    return layer_types(data, [FULL if (i + 1) % period == 0 else SLIDING for i in range(layers)])


def _read_ropes(data: Keys) -> dict[str, Rope]:
    """By kind of layer. A scaling in the old form is the global layers'."""
    nested, old = table(data, "rope_parameters"), table(data, "rope_scaling")
    unknown = [key for key in nested if key not in (SLIDING, FULL)]
    if unknown:
        raise ValueError(f"rope_parameters: {unknown[0]!r:.40} is not supported; expected {SLIDING!r} and {FULL!r}")
    local, wide = table(nested, SLIDING), {**table(nested, FULL), **old}
    return {
        SLIDING: parse_rope(local, data, number(data, "rope_local_base_freq", LOCAL_THETA)),
        FULL: parse_rope(wide, data, number(data, "rope_theta", GLOBAL_THETA)),
    }


def _family(model_type: str, architecture: str, *reads: str) -> Family:
    return Family(
        model_type,
        architecture,
        partial(claims, family=model_type),
        partial(reasons, family=model_type),
        partial(write, family=model_type),
        partial(read, family=model_type),
        lambda *_: GEMMA_PLACES,
        reads=frozenset(("attention_bias", "final_logit_softcapping", *reads)),
    )


GEMMA2 = _family("gemma2", "Gemma2ForCausalLM", "attn_logit_softcapping")
GEMMA3 = _family("gemma3_text", "Gemma3ForCausalLM")
