"""GPT-2: learned positions, layer norms, biases everywhere, and transposed matrices with q, k, v in one."""

from collections.abc import Collection
from typing import Any

from groundup.model.attention import AttentionConfig
from groundup.model.block import BlockConfig
from groundup.model.families.family import Family, Reasons, attention, common_reasons, is_plain, mlp, used_blocks
from groundup.model.families.keys import (
    ACTIVATION_NAMES,
    MOST_HEADS,
    MOST_LAYERS,
    MOST_WIDTH,
    Keys,
    activation,
    flag,
    number,
    size,
)
from groundup.model.feedforward import MLPConfig
from groundup.model.position import LearnedPositions
from groundup.model.transformer import ModelConfig
from groundup.model.weight_names import Place


def places(config: ModelConfig, data: Keys, names: Collection[str]) -> dict[str, Place]:
    fused = "transformer.h.{i}.attn.c_attn"
    thirds = (config.d_model,) * 3
    return {
        "embed": Place("transformer.wte"),
        "positions": Place("transformer.wpe"),
        "blocks.{i}.mixer_norm": Place("transformer.h.{i}.ln_1"),
        "blocks.{i}.mixer.wq": Place(fused, transposed=True, sizes=thirds, part=0),
        "blocks.{i}.mixer.wk": Place(fused, transposed=True, sizes=thirds, part=1),
        "blocks.{i}.mixer.wv": Place(fused, transposed=True, sizes=thirds, part=2),
        "blocks.{i}.mixer.wo": Place("transformer.h.{i}.attn.c_proj", transposed=True),
        "blocks.{i}.ffn_norm": Place("transformer.h.{i}.ln_2"),
        "blocks.{i}.ffn.up": Place("transformer.h.{i}.mlp.c_fc", transposed=True),
        "blocks.{i}.ffn.down": Place("transformer.h.{i}.mlp.c_proj", transposed=True),
        "final_norm": Place("transformer.ln_f"),
        "head": Place("lm_head"),
    }


def claims(config: ModelConfig) -> bool:
    return is_plain(config) and isinstance(config.positions, LearnedPositions)


def reasons(config: ModelConfig) -> Reasons:
    block = config.block(0)
    mixer = attention(block)
    unbiased = not (mixer.bias and mixer.out_bias and mlp(block).bias and config.norm_bias)
    windowed = any(attention(block).window is not None for block in used_blocks(config))
    return [
        *common_reasons(config, "pre"),
        (block.norm != "layer", "RMSNorm with learned positions"),
        (mixer.rope is not None, "rotary and learned positions together"),
        (unbiased, "learned positions without a bias on every linear layer and norm"),
        (mlp(block).gated, "a gated feed-forward layer with learned positions"),
        (mixer.num_kv_heads != mixer.num_heads, "shared key/value heads with learned positions"),
        (mixer.num_heads * mixer.d_head != config.d_model, "learned positions, unless heads fill d_model"),
        (bool(mixer.qk_norm) or windowed, "qk_norm or a window with learned positions"),
    ]


def write(config: ModelConfig) -> dict[str, Any]:
    assert isinstance(config.positions, LearnedPositions)
    ffn = mlp(config.block(0))
    act = ACTIVATION_NAMES[ffn.activation][0]
    return {
        "n_embd": config.d_model,
        "n_layer": config.num_layers,
        "n_head": attention(config.block(0)).num_heads,
        "n_inner": ffn.d_ff,
        "n_positions": config.positions.max_length,
        "activation_function": "gelu_new" if act == "gelu_pytorch_tanh" else act,
        "layer_norm_epsilon": config.norm_eps,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    }


def read(data: Keys) -> ModelConfig:
    d_model, heads = size(data, "n_embd", most=MOST_WIDTH), size(data, "n_head", most=MOST_HEADS)
    length = size(data, "n_positions", 1024)
    if d_model % heads:
        raise ValueError(f"n_embd={d_model} is not divisible by n_head={heads}")
    mixer = AttentionConfig(heads, heads, d_model // heads, rope=None, bias=True, out_bias=True)
    act = activation(data, "activation_function", "gelu_new")
    ffn = MLPConfig(size(data, "n_inner", 4 * d_model), gated=False, activation=act, bias=True)
    return ModelConfig(
        vocab_size=size(data, "vocab_size"),
        d_model=d_model,
        num_layers=size(data, "n_layer", most=MOST_LAYERS),
        blocks=(BlockConfig(mixer, ffn, norm="layer"),),
        context_length=length,
        positions=LearnedPositions(length),
        tie_embeddings=flag(data, "tie_word_embeddings", True),
        norm_eps=number(data, "layer_norm_epsilon", 1e-5),
        norm_bias=True,
    )


GPT2 = Family(
    "gpt2", "GPT2LMHeadModel", claims, reasons, write, read, places, prefix="transformer.",
    fixed={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
)  # fmt: skip
