"""Llama, and what differs from it in a few keys: Mistral, Qwen2, Qwen3.

Mistral has a window in every layer, Qwen2 biases on q, k, v, Qwen3 normalised heads; both Qwens windows by layer.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from groundup.model.attention import AttentionConfig
from groundup.model.block import BlockConfig
from groundup.model.families.family import (
    Family,
    Reasons,
    attention,
    common_reasons,
    is_plain,
    mlp,
    undivided,
    used_blocks,
    windows,
)
from groundup.model.families.keys import (
    ACTIVATION_NAMES,
    FULL,
    MOST_LAYERS,
    SLIDING,
    Keys,
    activation,
    attention_sizes,
    count,
    flag,
    layer_types,
    number,
    size,
)
from groundup.model.families.rotary import read_rope, write_rope
from groundup.model.feedforward import MLPConfig
from groundup.model.transformer import ModelConfig
from groundup.model.weight_names import Place

ATTENTION_PLACES = {
    "blocks.{i}.mixer.wq": Place("model.layers.{i}.self_attn.q_proj"),
    "blocks.{i}.mixer.wk": Place("model.layers.{i}.self_attn.k_proj"),
    "blocks.{i}.mixer.wv": Place("model.layers.{i}.self_attn.v_proj"),
    "blocks.{i}.mixer.wo": Place("model.layers.{i}.self_attn.o_proj"),
    "blocks.{i}.mixer.q_norm": Place("model.layers.{i}.self_attn.q_norm"),
    "blocks.{i}.mixer.k_norm": Place("model.layers.{i}.self_attn.k_norm"),
}
MLP_PLACES = {
    "blocks.{i}.ffn.gate": Place("model.layers.{i}.mlp.gate_proj"),
    "blocks.{i}.ffn.up": Place("model.layers.{i}.mlp.up_proj"),
    "blocks.{i}.ffn.down": Place("model.layers.{i}.mlp.down_proj"),
}
NORM_PLACES = {
    "blocks.{i}.mixer_norm": Place("model.layers.{i}.input_layernorm"),
    "blocks.{i}.ffn_norm": Place("model.layers.{i}.post_attention_layernorm"),
}
END_PLACES = {
    "embed": Place("model.embed_tokens"),
    "final_norm": Place("model.norm"),
    "head": Place("lm_head"),
}
LLAMA_PLACES = END_PLACES | NORM_PLACES | ATTENTION_PLACES | MLP_PLACES


def claims(config: ModelConfig, family: str) -> bool:
    first = attention(config.block(0)) if is_plain(config) else None
    if first is None:
        return False
    if first.qk_norm or family == "qwen3":
        return bool(first.qk_norm) and family == "qwen3"
    if family == "qwen2":
        return first.bias and not first.out_bias
    return family == "llama" or any(w is not None for w in windows(config))


def reasons(config: ModelConfig, family: str) -> Reasons:
    block = config.block(0)
    mixer = attention(block)
    sizes = {attention(block).window for block in used_blocks(config)}
    return [
        *common_reasons(config, "pre"),
        (block.norm != "rms", "layer norm without learned positions"),
        (config.positions is not None, "sinusoidal positions"),
        (mixer.rope is None, "attention without a rotary embedding or learned positions"),
        (not mlp(block).gated, "a feed-forward layer without a gate and rotary positions"),
        (mlp(block).bias and family != "llama", f"feed-forward biases in {family}"),
        (family == "qwen2" and mixer.num_heads * mixer.d_head != config.d_model,
         "biases on q, k, v alone, unless num_heads * d_head = d_model"),
        (family != "qwen2" and mixer.bias != mixer.out_bias, "biases on q, k, v or on the output alone"),
        (family == "mistral" and (mixer.bias or mixer.out_bias), "attention biases with a window"),
        (family == "mistral" and len(sizes) > 1, "windows in some layers only, without qk_norm"),
        (len(sizes - {None}) > 1, "windows of different sizes"),
        *([undivided(config)] if family in ("llama", "mistral") else []),
    ]  # fmt: skip


def write(config: ModelConfig, family: str) -> dict[str, Any]:
    mixer, layer = attention(config.block(0)), mlp(config.block(0))
    biases = {"attention_bias": mixer.bias, "mlp_bias": layer.bias}
    biases |= {"attention_bias": False} if family == "qwen2" else {}  # its biases are no option
    return write_attention(config) | write_windows(config, family) | biases | {"intermediate_size": layer.d_ff}


def write_attention(config: ModelConfig) -> dict[str, Any]:
    """The keys that most families with attention share."""
    mixer = attention(config.block(0))
    assert mixer.rope is not None
    return write_rope(mixer.rope) | {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.num_kv_heads,
        "head_dim": mixer.d_head,
        "hidden_act": write_activation(config),
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "attention_dropout": 0.0,
    }


def write_activation(config: ModelConfig) -> str:
    return ACTIVATION_NAMES[getattr(config.block(0).ffn, "activation", "silu")][0]


def write_windows(config: ModelConfig, family: str) -> dict[str, Any]:
    each = windows(config)
    if family == "mistral":
        return {"sliding_window": each[0]}
    if family == "llama":
        return {}
    window = next((w for w in each if w is not None), None)
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": config.num_layers if window is None else 0,
        "layer_types": write_layer_types(config),
    }


def write_layer_types(config: ModelConfig) -> list[str]:
    return [FULL if w is None else SLIDING for w in windows(config)]


def read(data: Keys, family: str) -> ModelConfig:
    bias = family == "llama" and flag(data, "mlp_bias", False)
    act = activation(data, "hidden_act", "silu")
    ffn = MLPConfig(size(data, "intermediate_size"), activation=act, bias=bias)
    biased = family == "qwen2" or flag(data, "attention_bias", False)
    mixer = read_attention(data, 128 if family == "qwen3" else None)
    mixer = replace(mixer, qk_norm=family == "qwen3", bias=biased, out_bias=biased and family != "qwen2")
    each = read_windows(data, family, size(data, "num_hidden_layers", most=MOST_LAYERS))
    return read_model(data, tuple(BlockConfig(replace(mixer, window=w), ffn) for w in each))


def read_attention(data: Keys, default_d_head: int | None = None, theta: float = 10_000.0) -> AttentionConfig:
    """Heads and positions; the numbers are for a file that does not say."""
    _, heads, kv_heads, d_head = attention_sizes(data, default_d_head)
    return AttentionConfig(heads, kv_heads, d_head, read_rope(data, theta))


def read_model(data: Keys, blocks: tuple[BlockConfig, ...], *, tied: bool = False, eps: float = 1e-6) -> ModelConfig:
    """The whole of these blocks. `tied` and `eps` are for a file that does not say."""
    return ModelConfig(
        vocab_size=size(data, "vocab_size"),
        d_model=attention_sizes(data)[0],
        num_layers=size(data, "num_hidden_layers", most=MOST_LAYERS),
        blocks=blocks,
        context_length=size(data, "max_position_embeddings", 2048),
        tie_embeddings=flag(data, "tie_word_embeddings", tied),
        norm_eps=number(data, "rms_norm_eps", eps),
    )


def read_windows(data: Keys, family: str, layers: int) -> list[int | None]:
    """Each layer's window, as the shortest list that repeats to them."""
    if family == "llama":
        return [None]
    window = None if data.get("sliding_window", 0) is None else size(data, "sliding_window", 4096)
    if family == "mistral" or window is None or not flag(data, "use_sliding_window", False):
        return [window if family == "mistral" else None]
    full = min(layers, count(data, "max_window_layers", 28))
    types = layer_types(data, [FULL] * full + [SLIDING] * (layers - full))
    return [window if t == SLIDING else None for t in types]


def _family(model_type: str, architecture: str, *reads: str) -> Family:
    return Family(
        model_type,
        architecture,
        partial(claims, family=model_type),
        partial(reasons, family=model_type),
        partial(write, family=model_type),
        partial(read, family=model_type),
        lambda *_: LLAMA_PLACES,
        reads=frozenset(reads),
    )


QWEN3 = _family("qwen3", "Qwen3ForCausalLM", "attention_bias")
QWEN2 = _family("qwen2", "Qwen2ForCausalLM")
MISTRAL = _family("mistral", "MistralForCausalLM")
LLAMA = _family("llama", "LlamaForCausalLM", "attention_bias", "mlp_bias")
