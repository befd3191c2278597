"""Mixtral and OLMoE, and how their and DeepSeek's files hold experts.

Published files hold each expert's matrices apart; `transformers` 5 may join them: gate_up_proj is a stack over experts
of gate above up. Both are read; written is expert by expert, which every version reads. Balancing losses and the rate
of a balancing bias are about training: they are neither written nor read.

Jiang et al. 2024 (arXiv:2401.04088), Muennighoff et al. 2024 (arXiv:2409.02060).
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from groundup.model.attention import AttentionConfig
from groundup.model.balance import Balance
from groundup.model.block import BlockConfig
from groundup.model.families.family import Family, Reasons, attention, common_reasons, undivided, used_blocks, windows
from groundup.model.families.keys import MOST_HEADS, MOST_WIDTH, Keys, activation, flag, size
from groundup.model.families.llama import (
    ATTENTION_PLACES,
    END_PLACES,
    NORM_PLACES,
    read_attention,
    read_model,
    write_attention,
)
from groundup.model.moe import MoEConfig
from groundup.model.router import TopKRouter
from groundup.model.transformer import ModelConfig
from groundup.model.weight_names import Place


def moe(block: BlockConfig) -> MoEConfig:
    """The feed-forward layer of a block with experts."""
    assert isinstance(block.ffn, MoEConfig)
    return block.ffn


def without_training(block: BlockConfig) -> BlockConfig:
    """The block as a config.json can say it."""
    return replace(block, ffn=untrained(block.ffn)) if isinstance(block.ffn, MoEConfig) else block


def untrained(ffn: MoEConfig) -> MoEConfig:
    """Without what is about training alone, as a config.json has no room for it."""
    router = ffn.router
    if isinstance(router, TopKRouter) and router.bias_rate is not None:
        router = replace(router, bias_rate=0.0)
    return replace(ffn, balance=Balance(), router=router)


def expert_places(ffn: MoEConfig, module: str, fused: bool, gate: str, up: str, down: str) -> dict[str, Place]:
    """Where stacks of experts are, in `module`; the three words are the matrices' names in unfused files."""
    ours = "blocks.{i}.ffn.experts."
    if fused:
        both = (ffn.d_ff, ffn.d_ff)
        return {
            ours + "gate.weight": Place(module + ".experts.gate_up_proj", sizes=both, part=0),
            ours + "up.weight": Place(module + ".experts.gate_up_proj", sizes=both, part=1),
            ours + "down.weight": Place(module + ".experts.down_proj"),
        }
    names = {"gate": gate, "up": up, "down": down}
    return {ours + k: Place(f"{module}.experts.{{e}}.{v}", experts=ffn.num_experts) for k, v in names.items()}


def is_fused(names: Collection[str]) -> bool:
    """Whether a file joins its experts; with no names, as files are written, it does not."""
    return any(name.endswith(".experts.gate_up_proj") for name in names)


def mixtral_places(config: ModelConfig, data: Keys, names: Collection[str]) -> dict[str, Place]:
    fused = is_fused(names)
    module = "model.layers.{i}.mlp" if fused else "model.layers.{i}.block_sparse_moe"
    return END_PLACES | NORM_PLACES | ATTENTION_PLACES | {
        "blocks.{i}.ffn.router": Place(module + ".gate"),
        **expert_places(moe(config.block(0)), module, fused, "w1", "w3", "w2"),
    }  # fmt: skip


def olmoe_places(config: ModelConfig, data: Keys, names: Collection[str]) -> dict[str, Place]:
    module = "model.layers.{i}.mlp"
    return END_PLACES | NORM_PLACES | ATTENTION_PLACES | {
        "blocks.{i}.ffn.router": Place(module + ".gate"),
        **expert_places(moe(config.block(0)), module, is_fused(names), "gate_proj", "up_proj", "down_proj"),
    }  # fmt: skip


def _has_experts(config: ModelConfig) -> bool:
    return all(isinstance(b.mixer, AttentionConfig) and isinstance(b.ffn, MoEConfig) for b in used_blocks(config))


def claims_mixtral(config: ModelConfig) -> bool:
    return _has_experts(config) and not attention(config.block(0)).qk_norm


def claims_olmoe(config: ModelConfig) -> bool:
    return _has_experts(config) and bool(attention(config.block(0)).qk_norm)


def mixtral_reasons(config: ModelConfig) -> Reasons:
    return [
        *expert_reasons(config),
        *common_reasons(config, "pre"),
        (attention(config.block(0)).rope is None, "experts without a rotary embedding"),
        (len(set(windows(config))) > 1, "experts with windows in some layers only"),
    ]


def olmoe_reasons(config: ModelConfig) -> Reasons:
    mixer = attention(config.block(0))
    return [
        *expert_reasons(config),
        *common_reasons(config, "pre"),
        (mixer.rope is None, "experts without a rotary embedding"),
        (mixer.num_heads * mixer.d_head != config.d_model, "experts and a qk_norm, unless heads fill d_model"),
        undivided(config),
    ]


def expert_reasons(config: ModelConfig) -> Reasons:
    """What no family with experts has."""
    layers = [b.ffn for b in used_blocks(config) if isinstance(b.ffn, MoEConfig)]
    return [
        (any(ffn.capacity_factor is not None for ffn in layers), "a capacity of experts"),
        (any(not isinstance(ffn.router, TopKRouter) for ffn in layers), "experts chosen otherwise than by top-k"),
        (any(not ffn.gated for ffn in layers), "experts without a gate"),
    ]


def write_mixtral(config: ModelConfig) -> dict[str, Any]:
    ffn = moe(config.block(0))
    experts = {"num_local_experts": ffn.num_experts, "num_experts_per_tok": ffn.top_k, "intermediate_size": ffn.d_ff}
    return write_attention(config) | experts | {"sliding_window": windows(config)[0]}


def write_olmoe(config: ModelConfig) -> dict[str, Any]:
    ffn = moe(config.block(0))
    renormalise = isinstance(ffn.router, TopKRouter) and ffn.router.renormalise
    experts = {"num_experts": ffn.num_experts, "num_experts_per_tok": ffn.top_k, "intermediate_size": ffn.d_ff}
    bias = attention(config.block(0)).bias
    return write_attention(config) | experts | {"norm_topk_prob": renormalise, "attention_bias": bias}


def read_experts(data: Keys, key: str, experts: int, top_k: int, width: str, router: TopKRouter) -> MoEConfig:
    """`key` and `width` are what the file calls the number of experts and d_ff; the numbers are for no such keys."""
    return MoEConfig(
        num_experts=size(data, key, experts, most=MOST_HEADS),
        top_k=size(data, "num_experts_per_tok", top_k, most=MOST_HEADS),
        d_ff=size(data, width, most=MOST_WIDTH),
        router=router,
        activation=activation(data, "hidden_act", "silu"),
    )


def read_mixtral(data: Keys) -> ModelConfig:
    data = {"num_key_value_heads": 8, "max_position_embeddings": 131_072, **data}
    window = None if data.get("sliding_window") is None else size(data, "sliding_window")
    mixer = replace(read_attention(data, theta=1_000_000.0), window=window)
    ffn = read_experts(data, "num_local_experts", 8, 2, "intermediate_size", TopKRouter())
    return read_model(data, (BlockConfig(mixer, ffn),), eps=1e-5)


def read_olmoe(data: Keys) -> ModelConfig:
    biased = flag(data, "attention_bias", False)
    mixer = replace(read_attention(data), qk_norm="whole", bias=biased, out_bias=biased)
    router = TopKRouter(renormalise=flag(data, "norm_topk_prob", False))
    ffn = read_experts(data, "num_experts", 64, 8, "intermediate_size", router)
    return read_model({"max_position_embeddings": 4096, **data}, (BlockConfig(mixer, ffn),), eps=1e-5)


MIXTRAL = Family(
    "mixtral", "MixtralForCausalLM", claims_mixtral, mixtral_reasons, write_mixtral, read_mixtral, mixtral_places,
    reads=frozenset({"num_local_experts"}),
)  # fmt: skip
OLMOE = Family(
    "olmoe", "OlmoeForCausalLM", claims_olmoe, olmoe_reasons, write_olmoe, read_olmoe, olmoe_places,
    reads=frozenset({"num_experts", "attention_bias"}),
)  # fmt: skip
