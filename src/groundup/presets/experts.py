"""Published models with experts: few of a layer's matrices work on a token, so `active` is less than `parameters`."""

from dataclasses import replace
from functools import partial
from typing import Any

from groundup.model.attention import AttentionConfig
from groundup.model.balance import Balance
from groundup.model.block import BlockConfig
from groundup.model.feedforward import MLPConfig
from groundup.model.latent import LatentAttentionConfig
from groundup.model.moe import MoEConfig
from groundup.model.multi_token import MultiTokenConfig
from groundup.model.position import Rope
from groundup.model.rope_scaling import YarnScaling, yarn_amplitude
from groundup.model.router import TopKRouter
from groundup.model.transformer import ModelConfig
from groundup.presets.published import Published


def mixtral(*, num_layers: int, d_model: int, num_heads: int, d_ff: int, context_length: int) -> ModelConfig:
    """Mistral's block, eight experts, two for each token, gates that sum to one."""
    mixer = AttentionConfig(num_heads, 8, d_model // num_heads, rope=Rope(1e6))
    ffn = MoEConfig(8, 2, d_ff, balance=Balance(load=0.02))
    return ModelConfig(32_000, d_model, num_layers, (BlockConfig(mixer, ffn),), context_length)


def olmoe() -> ModelConfig:
    """64 small experts, eight for each token, none shared; a norm over all heads of queries, and of keys."""
    mixer = AttentionConfig(16, 16, 128, qk_norm="whole")
    ffn = MoEConfig(64, 8, 1024, router=TopKRouter(renormalise=False), balance=Balance(load=0.01, z=0.001))
    return ModelConfig(50_304, 2048, 16, (BlockConfig(mixer, ffn),), context_length=4096)


def deepseek_moe_16b() -> ModelConfig:
    """Fine-grained experts and two shared ones, after one dense layer."""
    mixer = AttentionConfig(16, 16, 128)
    ffn = MoEConfig(64, 6, 1408, 2, TopKRouter(renormalise=False), Balance(load=0.001))
    return _after_dense(mixer, 10_944, ffn, dense=1, num_layers=28, d_model=2048, vocab_size=102_400, context=4096)


def deepseek_v2(*, lite: bool = False) -> ModelConfig:
    """Latent attention; a token's experts come from three of eight groups (not in Lite)."""
    rope, scale = _yarn(0.707, 192)
    if lite:
        mixer = LatentAttentionConfig(16, 512, 128, 64, 128, None, rope, scale)
        ffn = MoEConfig(64, 6, 1408, 2, TopKRouter(renormalise=False), Balance(sequence=0.001))
        return _after_dense(mixer, 10_944, ffn, dense=1, num_layers=27, d_model=2048, vocab_size=102_400)
    mixer = LatentAttentionConfig(128, 512, 128, 64, 128, 1536, rope, scale)
    router = TopKRouter(renormalise=False, scale=16.0, num_groups=8, top_groups=3)
    ffn = MoEConfig(160, 6, 1536, 2, router, Balance(load=0.003))
    return _after_dense(mixer, 12_288, ffn, dense=1, num_layers=60, d_model=5120, vocab_size=102_400)


def deepseek_v3(*, multi_token: bool = False) -> ModelConfig:
    """Sigmoid scores with a bias that balances without a loss; `multi_token` adds a module for the token after next."""
    rope, scale = _yarn(1.0, 192)
    mixer = LatentAttentionConfig(128, 512, 128, 64, 128, 1536, rope, scale)
    router = TopKRouter("sigmoid", True, 2.5, num_groups=8, top_groups=4, bias_rate=0.001)
    ffn = MoEConfig(256, 8, 2048, 1, router, Balance(sequence=0.0001))
    config = _after_dense(mixer, 18_432, ffn, dense=3, num_layers=61, d_model=7168, vocab_size=129_280)
    return replace(config, multi_token=MultiTokenConfig()) if multi_token else config


def switch(
    *, num_layers: int, d_model: int, num_heads: int, d_head: int, d_ff: int, num_experts: int, every: int, gated: bool
) -> ModelConfig:
    """One expert for each token, in every second layer (`every`) or in all: a decoder with the layers of T5's halves.

    What the published models have besides, attention from one half to the other, is a few parts in a thousand.
    Positions are rotary here and relative biases there.
    """
    mixer = AttentionConfig(num_heads, num_heads, d_head)
    activation: Any = "gelu_tanh" if gated else "relu"
    experts = MoEConfig(
        num_experts, 1, d_ff, router=TopKRouter(renormalise=False), balance=Balance(load=0.01), capacity_factor=1.25,
        gated=gated, activation=activation,
    )  # fmt: skip
    dense = BlockConfig(mixer, MLPConfig(d_ff, gated, activation))
    blocks = (dense,) * (every - 1) + (BlockConfig(mixer, experts),)
    return ModelConfig(32_128, d_model, num_layers, blocks, context_length=512, tie_embeddings=True)


def _after_dense(
    mixer: AttentionConfig | LatentAttentionConfig,
    d_ff: int,
    experts: MoEConfig,
    *,
    dense: int,
    num_layers: int,
    d_model: int,
    vocab_size: int,
    context: int = 163_840,
) -> ModelConfig:
    """The first `dense` layers have a plain feed-forward layer, the others experts."""
    first, rest = BlockConfig(mixer, MLPConfig(d_ff)), BlockConfig(mixer, experts)
    blocks = (first,) * dense + (rest,) * (num_layers - dense)
    return ModelConfig(vocab_size, d_model, num_layers, blocks, context, norm_eps=1e-6)


def _yarn(weight: float, d_qk: int) -> tuple[Rope, float]:
    """DeepSeek's stretching from 4,096 tokens by 40: sharper scores by their scale, not by the rotation's amplitude."""
    scaling = YarnScaling(40.0, 4096, given_amplitude=1.0)
    return Rope(scaling=scaling), d_qk**-0.5 * yarn_amplitude(40.0, weight) ** 2


_MIXTRAL = "Jiang et al. 2024 (arXiv:2401.04088)"
_SWITCH = "Fedus et al. 2021, table 9 (arXiv:2101.03961)"
_V2 = "DeepSeek-V2 (arXiv:2405.04434)"
_V3 = "DeepSeek-V3 (arXiv:2412.19437)"
_BILLION = 1_000_000_000

MODELS: dict[str, Published] = {
    "mixtral-8x7b": Published(
        partial(mixtral, num_layers=32, d_model=4096, num_heads=32, d_ff=14_336, context_length=32_768),
        46_702_792_704, _MIXTRAL, active=12_900_000_000,
    ),
    "mixtral-8x22b": Published(
        partial(mixtral, num_layers=56, d_model=6144, num_heads=48, d_ff=16_384, context_length=65_536),
        141 * _BILLION, "Mistral AI 2024", rounded=_BILLION, active=39 * _BILLION, active_rounded=_BILLION,
    ),
    "olmoe-1b-7b": Published(
        olmoe, 6_919_161_856, "Muennighoff et al. 2024 (arXiv:2409.02060)", active=1_300_000_000,
    ),
    "deepseek-moe-16b": Published(
        deepseek_moe_16b, 16_375_728_128, "Dai et al. 2024 (arXiv:2401.06066)", active=2_800_000_000,
    ),
    "deepseek-v2-lite": Published(partial(deepseek_v2, lite=True), 15_706_484_224, _V2),
    "deepseek-v2": Published(
        deepseek_v2, 235_741_434_880, _V2, active=21 * _BILLION, active_rounded=_BILLION,
    ),
    "deepseek-v3": Published(
        deepseek_v3, 671 * _BILLION, _V3, rounded=_BILLION, active=37 * _BILLION, active_rounded=_BILLION,
        active_with_table=False,
    ),
    "switch-base": Published(
        partial(
            switch, num_layers=24, d_model=768, num_heads=12, d_head=64, d_ff=2048, num_experts=128, every=2, gated=True
        ),
        7 * _BILLION, _SWITCH, rounded=_BILLION,
    ),
    "switch-c": Published(
        partial(
            switch, num_layers=30, d_model=2080, num_heads=32, d_head=64, d_ff=6144, num_experts=2048, every=1,
            gated=False,
        ),
        1571 * _BILLION, _SWITCH, rounded=_BILLION,
    ),
}  # fmt: skip
