"""DeepSeek-V2 and V3: multi-head latent attention, dense layers first, then experts (arXiv:2405.04434, 2412.19437).

V2's router is a softmax over all experts, V3's a sigmoid for each with a balancing bias; both may choose in groups.

Their files keep rotary pairs side by side, and join the latent's projection to the rotary key's. YaRN sharpens scores
twice: by the amplitude of cosines and sines, and by a factor on the scale that mscale_all_dim gives. The norms inside
attention have an epsilon of 1e-6 in the class, whatever the file says, so that is the only one that is read.
"""

import math
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

from groundup.model.block import BlockConfig
from groundup.model.families.experts import expert_places, expert_reasons, is_fused, read_experts
from groundup.model.families.family import Family, Reasons, undivided, used_blocks
from groundup.model.families.keys import (
    MOST_HEADS,
    MOST_LAYERS,
    Keys,
    activation,
    attention_sizes,
    count,
    flag,
    number,
    shortest,
    size,
    word,
)
from groundup.model.families.llama import END_PLACES, MLP_PLACES, NORM_PLACES, read_model, write_activation
from groundup.model.families.rotary import read_rope, rope_keys, write_rope
from groundup.model.feedforward import MLPConfig
from groundup.model.latent import LatentAttentionConfig
from groundup.model.moe import MoEConfig
from groundup.model.position import Rope
from groundup.model.rope_scaling import YarnScaling, yarn_amplitude
from groundup.model.router import TopKRouter
from groundup.model.transformer import ModelConfig
from groundup.model.weight_names import Interleaved, Place

EPS = 1e-6
Q_RANK, KV_RANK = 1536, 512


def places(config: ModelConfig, data: Keys, names: Collection[str]) -> dict[str, Place]:
    mixer = latent(config.block(0))
    pairs = flag(data, "rope_interleave", True)
    q = Interleaved(mixer.d_nope + mixer.d_rope, mixer.d_rope) if pairs else None
    k = Interleaved(mixer.d_rope, mixer.d_rope) if pairs else None
    attention, joined = "model.layers.{i}.self_attn.", (mixer.kv_rank, mixer.d_rope)
    return END_PLACES | NORM_PLACES | MLP_PLACES | _moe_places(config, names) | {
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


def _moe_places(config: ModelConfig, names: Collection[str]) -> dict[str, Place]:
    layers = _experts(config)
    module = "model.layers.{i}.mlp"
    if not layers:
        return {}
    return expert_places(layers[0], module, is_fused(names), "gate_proj", "up_proj", "down_proj") | {
        "blocks.{i}.ffn.router": Place(module + ".gate"),
        "blocks.{i}.ffn.router.bias": Place(module + ".gate.e_score_correction_bias"),
        "blocks.{i}.ffn.shared.gate": Place(module + ".shared_experts.gate_proj"),
        "blocks.{i}.ffn.shared.up": Place(module + ".shared_experts.up_proj"),
        "blocks.{i}.ffn.shared.down": Place(module + ".shared_experts.down_proj"),
    }


def latent(block: BlockConfig) -> LatentAttentionConfig:
    assert isinstance(block.mixer, LatentAttentionConfig)
    return block.mixer


def claims(config: ModelConfig, family: str) -> bool:
    """Without experts the two are one, and V3 is written."""
    blocks = used_blocks(config)
    if not all(isinstance(b.mixer, LatentAttentionConfig) and isinstance(b.ffn, MLPConfig | MoEConfig) for b in blocks):
        return False
    routers = [b.ffn.router for b in blocks if isinstance(b.ffn, MoEConfig)]
    softmax = any(isinstance(router, TopKRouter) and router.score == "softmax" for router in routers)
    return softmax == (family == "deepseek_v2")


def reasons(config: ModelConfig) -> Reasons:
    first = config.block(0)
    mixer, unscaled = latent(first), _unscaled(latent(first))
    scaled = mixer.scale is not None and not math.isclose(mixer.scale, unscaled, rel_tol=1e-9)
    kinds = [type(config.block(i).ffn) for i in range(config.num_layers)]
    return [
        *expert_reasons(config),
        (kinds != sorted(kinds, key=lambda kind: kind is MoEConfig), "dense layers behind layers with experts"),
        (any(ffn.num_shared == 0 for ffn in _experts(config)), "latent attention and experts, none of them shared"),
        (first.placement != "pre", f"placement {first.placement!r} (only 'pre' is written with latent attention)"),
        (config.norm_eps != EPS, f"norm_eps={config.norm_eps} with latent attention, where the class has {EPS}"),
        (mixer.window is not None, "a window with latent attention"),
        (scaled and not isinstance(mixer.rope.scaling, YarnScaling), "a scale of scores without YaRN"),
        (scaled and (mixer.scale or 0) < unscaled, "a scale of scores below 1 / sqrt(d_nope + d_rope)"),
        (any(isinstance(b.ffn, MLPConfig) and not b.ffn.gated for b in used_blocks(config)),
         "a feed-forward layer without a gate and latent attention"),
        undivided(config),
    ]  # fmt: skip


def _experts(config: ModelConfig) -> list[MoEConfig]:
    """The layers with experts."""
    each = [config.block(i).ffn for i in range(config.num_layers)]
    return [ffn for ffn in each if isinstance(ffn, MoEConfig)]


def _unscaled(mixer: LatentAttentionConfig) -> float:
    return (mixer.d_nope + mixer.d_rope) ** -0.5


def write(config: ModelConfig) -> dict[str, Any]:
    mixer = latent(config.block(0))
    return _write_rope(mixer) | _write_layers(config) | {
        "hidden_size": config.d_model,
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
    }  # fmt: skip


def _write_layers(config: ModelConfig) -> dict[str, Any]:
    experts, dense = _experts(config), [b.ffn for b in used_blocks(config) if isinstance(b.ffn, MLPConfig)]
    layers = {"num_hidden_layers": config.num_layers, "first_k_dense_replace": config.num_layers - len(experts)}
    layers |= {"intermediate_size": dense[0].d_ff if dense else experts[0].d_ff}
    if not experts or not isinstance(router := experts[0].router, TopKRouter):
        return layers
    greedy = "noaux_tc" if router.score == "sigmoid" else "greedy" if router.num_groups == 1 else "group_limited_greedy"
    return layers | {
        "n_routed_experts": experts[0].num_experts,
        "num_experts_per_tok": experts[0].top_k,
        "moe_intermediate_size": experts[0].d_ff,
        "n_shared_experts": experts[0].num_shared,
        "scoring_func": router.score,
        "norm_topk_prob": router.renormalise,
        "routed_scaling_factor": router.scale,
        "n_group": router.num_groups,
        "topk_group": router.top_groups,
        "topk_method": greedy,
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
    dense = min(layers, count(data, "first_k_dense_replace", 0 if family == "deepseek_v2" else 3))
    if number(data, "rms_norm_eps", EPS) != EPS:
        raise ValueError(f"rms_norm_eps={data['rms_norm_eps']!r:.40} is not supported with latent attention; use {EPS}")
    mixer, blocks = read_latent(data), []
    if dense:
        act = activation(data, "hidden_act", "silu")
        blocks += [BlockConfig(mixer, MLPConfig(size(data, "intermediate_size"), activation=act))] * dense
    if dense < layers:
        blocks += [BlockConfig(mixer, _read_experts(data, family))] * (layers - dense)
    return read_model({"max_position_embeddings": 4096, **data}, tuple(shortest(blocks)))


def _read_experts(data: Keys, family: str) -> MoEConfig:
    if (frequency := size(data, "moe_layer_freq", 1)) != 1:
        raise ValueError(f"moe_layer_freq={frequency} is not supported; expected 1: experts in every further layer")
    v2 = family == "deepseek_v2"
    router = _read_softmax_router(data) if v2 else _read_sigmoid_router(data)
    defaults = (64, 6) if v2 else (256, 8)
    if v2 and data.get("num_experts_per_tok") is None:
        raise ValueError("num_experts_per_tok is missing; expected an integer of at least 1")
    experts = read_experts(data, "n_routed_experts", *defaults, "moe_intermediate_size", router)
    return replace(experts, num_shared=size(data, "n_shared_experts", 2 if v2 else 1, most=MOST_HEADS))


def _read_softmax_router(data: Keys) -> TopKRouter:
    """V2. The class never renormalises, whatever norm_topk_prob says, so that has to be false."""
    word(data, "scoring_func", ("softmax",), "softmax")
    if flag(data, "norm_topk_prob", False):
        raise ValueError("norm_topk_prob=True is not supported in DeepseekV2ForCausalLM; expected false")
    method = word(data, "topk_method", ("greedy", "group_limited_greedy"), "greedy")
    groups = (1, 1) if method == "greedy" else (size(data, "n_group"), size(data, "topk_group"))
    return TopKRouter("softmax", False, number(data, "routed_scaling_factor", 1.0), *groups)


def _read_sigmoid_router(data: Keys) -> TopKRouter:
    """V3. The balancing bias is read, and stays as it is unless the config is given a rate."""
    word(data, "scoring_func", ("sigmoid",), "sigmoid")
    word(data, "topk_method", ("noaux_tc",), "noaux_tc")
    groups = size(data, "n_group", 8, most=MOST_HEADS), size(data, "topk_group", 4, most=MOST_HEADS)
    scale = number(data, "routed_scaling_factor", 2.5)
    return TopKRouter("sigmoid", flag(data, "norm_topk_prob", True), scale, *groups, bias_rate=0.0)


def read_latent(data: Keys) -> LatentAttentionConfig:
    _, heads, kv_heads, _ = attention_sizes(data)
    if kv_heads != heads:
        raise ValueError(f"num_key_value_heads={kv_heads} is not supported with latent attention; expected {heads}")
    q_rank = size(data, "q_lora_rank", Q_RANK, most=MOST_HEADS)
    rope, d_nope = read_rope(data), size(data, "qk_nope_head_dim", 128, most=MOST_HEADS)
    d_rope = size(data, "qk_rope_head_dim", 64, most=MOST_HEADS)
    return LatentAttentionConfig(
        heads,
        kv_rank=size(data, "kv_lora_rank", KV_RANK, most=MOST_HEADS),
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
