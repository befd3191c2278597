"""OLMo 2: norms on the outputs of the layers, and on all heads' channels of queries and keys together.

OLMo Team 2024, section 2.1 (arXiv:2501.00656).
"""

from dataclasses import replace
from typing import Any

from groundup.model.block import BlockConfig
from groundup.model.families.family import Family, Reasons, attention, common_reasons, is_plain, mlp
from groundup.model.families.keys import Keys, activation, flag, size
from groundup.model.families.llama import (
    ATTENTION_PLACES,
    END_PLACES,
    MLP_PLACES,
    read_attention,
    read_model,
    write_attention,
)
from groundup.model.feedforward import MLPConfig
from groundup.model.transformer import ModelConfig
from groundup.model.weight_names import Place

OLMO2_PLACES = END_PLACES | ATTENTION_PLACES | MLP_PLACES | {
    "blocks.{i}.mixer_post_norm": Place("model.layers.{i}.post_attention_layernorm"),
    "blocks.{i}.ffn_post_norm": Place("model.layers.{i}.post_feedforward_layernorm"),
}  # fmt: skip


def claims(config: ModelConfig) -> bool:
    return is_plain(config) and config.block(0).placement == "inner"


def reasons(config: ModelConfig) -> Reasons:
    mixer = attention(config.block(0))
    return [
        *common_reasons(config, "inner"),
        (mixer.qk_norm != "whole", "placement 'inner' without qk_norm 'whole'"),
        (mixer.rope is None, "placement 'inner' without a rotary embedding"),
    ]


def write(config: ModelConfig) -> dict[str, Any]:
    ffn, mixer = mlp(config.block(0)), attention(config.block(0))
    return write_attention(config) | {"intermediate_size": ffn.d_ff, "attention_bias": mixer.bias}


def read(data: Keys) -> ModelConfig:
    biased = flag(data, "attention_bias", False)
    ffn = MLPConfig(size(data, "intermediate_size"), activation=activation(data, "hidden_act", "silu"))
    mixer = replace(read_attention(data), qk_norm="whole", bias=biased, out_bias=biased)
    return read_model(data, (BlockConfig(mixer, ffn, placement="inner"),), eps=1e-5)


OLMO2 = Family(
    "olmo2", "Olmo2ForCausalLM", claims, reasons, write, read, lambda *_: OLMO2_PLACES,
    reads=frozenset({"attention_bias"}),
)  # fmt: skip
