"""Mamba-2: recurrent mixers and nothing else, so no heads, windows or positions to translate.

Dao & Gu 2024 (arXiv:2405.21060).
"""

import math
from typing import Any

from groundup.model.block import BlockConfig
from groundup.model.families.family import Family, Reasons, used_blocks
from groundup.model.families.keys import MOST_HEADS, MOST_LAYERS, MOST_WIDTH, Keys, flag, number, size
from groundup.model.mamba import Mamba2Config
from groundup.model.transformer import ModelConfig
from groundup.model.weight_names import Place

MAMBA2_PLACES = {
    "embed": Place("backbone.embeddings"),
    "blocks.{i}.mixer_norm": Place("backbone.layers.{i}.norm"),
    "blocks.{i}.mixer": Place("backbone.layers.{i}.mixer"),  # A_log, D and dt_bias, which are not in a module of theirs
    "blocks.{i}.mixer.in_proj": Place("backbone.layers.{i}.mixer.in_proj"),
    "blocks.{i}.mixer.conv": Place("backbone.layers.{i}.mixer.conv1d"),
    "blocks.{i}.mixer.norm": Place("backbone.layers.{i}.mixer.norm"),
    "blocks.{i}.mixer.out_proj": Place("backbone.layers.{i}.mixer.out_proj"),
    "final_norm": Place("backbone.norm_f"),
    "head": Place("lm_head"),
}
"""As `weight_names.LLAMA_PLACES`, for Mamba2ForCausalLM."""


def claims(config: ModelConfig) -> bool:
    return all(isinstance(block.mixer, Mamba2Config) and block.ffn is None for block in used_blocks(config))


def reasons(config: ModelConfig) -> Reasons:
    mixer = _mixer(config)
    undivided = mixer.d_inner % config.d_model != 0
    return [(undivided, f"{mixer.d_inner} inner channels of Mamba-2, no multiple of d_model={config.d_model}")]


def _mixer(config: ModelConfig) -> Mamba2Config:
    mixer = config.block(0).mixer
    assert isinstance(mixer, Mamba2Config)
    return mixer


def write(config: ModelConfig) -> dict[str, Any]:
    mixer = _mixer(config)
    return {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_heads": mixer.num_heads,
        "head_dim": mixer.d_head,
        "expand": mixer.d_inner // config.d_model,
        "state_size": mixer.d_state,
        "n_groups": mixer.num_groups,
        "conv_kernel": mixer.conv_kernel,
        "use_bias": mixer.bias,
        "use_conv_bias": mixer.conv_bias,
        "hidden_act": "silu",
        "layer_norm_epsilon": config.norm_eps,
        "max_position_embeddings": config.context_length,  # not a key of the class, which has no limit
    }


def read(data: Keys) -> ModelConfig:
    d_model = size(data, "hidden_size", most=MOST_WIDTH)
    mixer = Mamba2Config(
        num_heads=size(data, "num_heads", 128, most=MOST_HEADS),
        d_head=size(data, "head_dim", 64, most=MOST_HEADS),
        d_state=size(data, "state_size", 128, most=MOST_HEADS),
        num_groups=size(data, "n_groups", 8, most=MOST_HEADS),
        conv_kernel=size(data, "conv_kernel", 4, most=MOST_HEADS),
        bias=flag(data, "use_bias", False),
        conv_bias=flag(data, "use_conv_bias", True),
    )
    expand = size(data, "expand", 2, most=MOST_HEADS)
    if expand * d_model != mixer.d_inner:
        raise ValueError(
            f"expand={expand} times hidden_size={d_model} differs from num_heads={mixer.num_heads} times "
            f"head_dim={mixer.d_head}; correct one of them"
        )
    _check_steps(data)
    return ModelConfig(
        vocab_size=size(data, "vocab_size"),
        d_model=d_model,
        num_layers=size(data, "num_hidden_layers", most=MOST_LAYERS),
        blocks=(BlockConfig(mixer, None),),
        context_length=size(data, "max_position_embeddings", 2048),
        tie_embeddings=flag(data, "tie_word_embeddings", False),
        norm_eps=number(data, "layer_norm_epsilon", 1e-5),
    )


def _check_steps(data: Keys) -> None:
    """Steps are not clamped here. Infinity is no JSON, and is written as a number, a word or an object."""
    limit = data.get("time_step_limit")
    if limit is None:
        return
    low, high = limit if isinstance(limit, list | tuple) and len(limit) == 2 else (None, None)
    unbounded = high in ("Infinity", {"__float__": "Infinity"}) or (isinstance(high, float) and high == math.inf)
    if type(low) not in (int, float) or low != 0 or not unbounded:
        raise ValueError(f"time_step_limit={limit!r:.80} is not supported; expected from 0 to Infinity")


MAMBA2 = Family(
    "mamba2", "Mamba2ForCausalLM", claims, reasons, write, read, lambda *_: MAMBA2_PLACES, prefix="backbone.",
    fixed={"hidden_act": "silu"},
)  # fmt: skip
