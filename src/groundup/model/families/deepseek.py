"""DeepSeek-V2 and V3 with dense feed-forward layers: multi-head latent attention (arXiv:2405.04434, 2412.19437).

Their files keep rotary pairs side by side, and join the latent's projection to the rotary key's. YaRN sharpens scores
twice: by the amplitude of cosines and sines, and by a factor on the scale that mscale_all_dim gives. The norms inside
attention have an epsilon of 1e-6 in the class, whatever the file says, so that is the only one that is read.
"""

import math
from collections.abc import Collection
from functools import partial
from typing import Any

from groundup.model.block import BlockConfig
from groundup.model.families.family import Family, Reasons, mlp, undivided, used_blocks
from groundup.model.families.keys import (
    MOST_HEADS,
    MOST_LAYERS,
    Keys,
    activation,
    attention_sizes,
    count,
    flag,
    number,
    size,
)
from groundup.model.families.llama import END_PLACES, MLP_PLACES, NORM_PLACES, read_model, write_activation
from groundup.model.families.rotary import read_rope, rope_keys, write_rope
from groundup.model.feedforward import MLPConfig
from groundup.model.latent import LatentAttentionConfig
from groundup.model.position import Rope
from groundup.model.rope_scaling import YarnScaling, yarn_amplitude
from groundup.model.transformer import ModelConfig
from groundup.model.weight_names import Interleaved, Place

EPS = 1e-6
RANKS = {"deepseek_v2": (1536, 512), "deepseek_v3": (1536, 512)}


def places(config: ModelConfig, data: Keys, names: Collection[str]) -> dict[str, Place]:
    mixer = latent(config.block(0))
    pairs = flag(data, "rope_interleave", True)
    q = Interleaved(mixer.d_nope + mixer.d_rope, mixer.d_rope) if pairs else None
    k = Interleaved(mixer.d_rope, mixer.d_rope) if pairs else None
    attention, joined = "model.layers.{i}.self_attn.", (mixer.kv_rank, mixer.d_rope)
    return END_PLACES | NORM_PLACES | MLP_PLACES | {
        "blocks.{i}.mixer.wq": Place(attention + "q_proj", interleaved=q),
        "blocks.{i}.mixer.wq_down": Place(attention + "q_a_proj"),
        "blocks.{i}.mixer.q_norm": Place(attention + "q_a_layernorm"),
        "blocks.{i}.mixer.wq_up": Place(attention + "q_b_proj", interleaved=q),
        "blocks.{i}.mixer.wkv_down": Place(attention + "kv_a_proj_with_mqa", sizes=joined, part=0),
        "blocks.{i}.mixer.wk_rope": Place(attention + "kv_a_proj_with_mqa", sizes=joined, part=1, interleaved=k),
        "blocks.{i}.mixer.kv_norm": Place(attention + "kv_a_layernorm"),
        "blocks.{i}.mixer.wkv_up": Place(attention + "kv_b_proj"),
        "blocks.{i}.mixer.wo": Place(attention + "o_proj"),
    }  # fmt: skip


def latent(block: BlockConfig) -> LatentAttentionConfig:
    assert isinstance(block.mixer, LatentAttentionConfig)
    return block.mixer


def claims(config: ModelConfig, family: str) -> bool:
    blocks = used_blocks(config)
    dense = all(isinstance(b.mixer, LatentAttentionConfig) and isinstance(b.ffn, MLPConfig) for b in blocks)
    return dense and family == "deepseek_v3"


def reasons(config: ModelConfig) -> Reasons:
    first = config.block(0)
    mixer, unscaled = latent(first), _unscaled(latent(first))
    scaled = mixer.scale is not None and not math.isclose(mixer.scale, unscaled, rel_tol=1e-9)
    return [
        (first.placement != "pre", f"placement {first.placement!r} (only 'pre' is written with latent attention)"),
        (config.norm_eps != EPS, f"norm_eps={config.norm_eps} with latent attention, where the class has {EPS}"),
        (mixer.window is not None, "a window with latent attention"),
        (scaled and not isinstance(mixer.rope.scaling, YarnScaling), "a scale of scores without YaRN"),
        (scaled and (mixer.scale or 0) < unscaled, "a scale of scores below 1 / sqrt(d_nope + d_rope)"),
        (not mlp(first).gated, "a feed-forward layer without a gate and latent attention"),
        undivided(config),
    ]


def _unscaled(mixer: LatentAttentionConfig) -> float:
    return (mixer.d_nope + mixer.d_rope) ** -0.5


def write(config: ModelConfig) -> dict[str, Any]:
    mixer = latent(config.block(0))
    return _write_rope(mixer) | {
        "hidden_size": config.d_model,
        "intermediate_size": mlp(config.block(0)).d_ff,
        "num_hidden_layers": config.num_layers,
        "first_k_dense_replace": config.num_layers,
        "num_nextn_predict_layers": 0,
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.num_heads,
        "q_lora_rank": mixer.q_rank,
        "kv_lora_rank": mixer.kv_rank,
        "qk_nope_head_dim": mixer.d_nope,
        "qk_rope_head_dim": mixer.d_rope,
        "v_head_dim": mixer.d_value,
        "rope_interleave": True,
        "hidden_act": write_activation(config),
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "attention_bias": False,
        "attention_dropout": 0.0,
    }


def _write_rope(mixer: LatentAttentionConfig) -> dict[str, Any]:
    """A scale above the usual one becomes mscale_all_dim, and the amplitude is then given outright."""
    keys = write_rope(mixer.rope)
    scaling, usual = mixer.rope.scaling, _unscaled(mixer)
    if not isinstance(scaling, YarnScaling) or mixer.scale is None or mixer.scale <= usual:
        return keys
    weight = round((math.sqrt(mixer.scale / usual) - 1) / (yarn_amplitude(scaling.factor) - 1), 12)
    parameters = keys["rope_parameters"] | {"mscale_all_dim": weight, "attention_factor": scaling.amplitude}
    return keys | {"rope_parameters": parameters, "rope_scaling": parameters}


def read(data: Keys, family: str) -> ModelConfig:
    layers = size(data, "num_hidden_layers", most=MOST_LAYERS)
    dense = count(data, "first_k_dense_replace", 0 if family == "deepseek_v2" else 3)
    if dense < layers:
        raise ValueError(f"first_k_dense_replace={dense} of {layers} layers: experts are not supported yet")
    if number(data, "rms_norm_eps", EPS) != EPS:
        raise ValueError(f"rms_norm_eps={data['rms_norm_eps']!r:.40} is not supported with latent attention; use {EPS}")
    act = activation(data, "hidden_act", "silu")
    ffn = MLPConfig(size(data, "intermediate_size"), activation=act)
    return read_model({"max_position_embeddings": 4096, **data}, (BlockConfig(read_latent(data, family), ffn),))


def read_latent(data: Keys, family: str) -> LatentAttentionConfig:
    _, heads, kv_heads, _ = attention_sizes(data)
    if kv_heads != heads:
        raise ValueError(f"num_key_value_heads={kv_heads} is not supported with latent attention; expected {heads}")
    q_rank = size(data, "q_lora_rank", RANKS[family][0], most=MOST_HEADS)
    rope, d_nope = read_rope(data), size(data, "qk_nope_head_dim", 128, most=MOST_HEADS)
    d_rope = size(data, "qk_rope_head_dim", 64, most=MOST_HEADS)
    return LatentAttentionConfig(
        heads,
        kv_rank=size(data, "kv_lora_rank", RANKS[family][1], most=MOST_HEADS),
        d_nope=d_nope,
        d_rope=d_rope,
        d_value=size(data, "v_head_dim", 128, most=MOST_HEADS),
        q_rank=None if data.get("q_lora_rank", 0) is None else q_rank,
        rope=rope,
        scale=_read_scale(data, rope, d_nope + d_rope),
    )


def _read_scale(data: Keys, rope: Rope, channels: int) -> float | None:
    weight = rope_keys(data).get("mscale_all_dim")
    if not isinstance(rope.scaling, YarnScaling) or not weight:
        return None
    return channels**-0.5 * yarn_amplitude(rope.scaling.factor, number(rope_keys(data), "mscale_all_dim")) ** 2


def _unused(data: Keys) -> tuple[str, ...]:
    """Layers behind the last predict further tokens in training, and are not part of the language model."""
    layers = size(data, "num_hidden_layers", 61, most=MOST_LAYERS)
    more = count(data, "num_nextn_predict_layers", 0, most=MOST_LAYERS)
    return tuple(f"model.layers.{layers + i}." for i in range(more))


def _family(model_type: str, architecture: str) -> Family:
    return Family(
        model_type,
        architecture,
        partial(claims, family=model_type),
        reasons,
        write,
        partial(read, family=model_type),
        places,
        reads=frozenset({"n_routed_experts"}),
        unused=_unused,
    )


DEEPSEEK_V3 = _family("deepseek_v3", "DeepseekV3ForCausalLM")
DEEPSEEK_V2 = _family("deepseek_v2", "DeepseekV2ForCausalLM")
