"""The variant matrix: every mixer, feed-forward layer, norm and placement, as small models.

A new idea joins by one line in a table here, and every test that reads `VARIANTS` then holds it to its rule.
"""

from dataclasses import replace
from itertools import product

import torch

from groundup.kernels import ACTIVATIONS
from groundup.model import (
    PLACEMENTS,
    AttentionConfig,
    BlockConfig,
    HashRouter,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    Rope,
    SinusoidalPositions,
    TopKRouter,
    Transformer,
)

VOCAB, D_MODEL = 50, 16

MIXERS = {
    "mha": AttentionConfig(4, 4, 4),
    "gqa": AttentionConfig(4, 2, 4),
    "mqa": AttentionConfig(4, 1, 4),
    "windowed": AttentionConfig(4, 2, 4, window=3),
    "qk_norm": AttentionConfig(4, 2, 4, qk_norm=True),
    "nope": AttentionConfig(4, 2, 4, rope=None),
    "softcap": AttentionConfig(4, 2, 4, softcap=1.5),
    "bias": AttentionConfig(4, 2, 4, bias=True, out_bias=True),
    "wide_heads": AttentionConfig(2, 2, 12, rope=Rope(500.0)),
}

FFNS = (
    {f"gated_{name}": MLPConfig(24, activation=name) for name in ACTIVATIONS}
    | {f"plain_{name}": MLPConfig(24, gated=False, activation=name) for name in ACTIVATIONS}
    | {"gated_bias": MLPConfig(24, bias=True), "plain_bias": MLPConfig(24, gated=False, bias=True)}
    | {
        "moe_softmax": MoEConfig(4, 2, 12),
        "moe_sigmoid_shared": MoEConfig(8, 3, 8, 1, TopKRouter("sigmoid", True, 2.5, 4, 2, bias_rate=0.001)),
        # Room for every token even if all want one expert: with less, a token's result depends on its neighbours,
        # and neither cached decoding nor a packed document could equal anything.
        "moe_capacity": MoEConfig(4, 1, 12, router=TopKRouter(renormalise=False), capacity_factor=4.0, gated=False),
        "moe_hash": MoEConfig(4, 2, 12, router=HashRouter(), activation="gelu"),
    }
)

NORMS = ("rms", "layer")


def small(*blocks: BlockConfig, **options) -> ModelConfig:
    """Two layers, or one of each block."""
    return ModelConfig(VOCAB, D_MODEL, max(2, len(blocks)), blocks, **options)


def _every_variant() -> dict[str, ModelConfig]:
    parts = product(MIXERS.items(), FFNS.items(), NORMS, PLACEMENTS)
    return {
        f"{mixer}-{ffn}-{norm}-{placement}": small(
            BlockConfig(mixer_config, ffn_config, norm, placement), norm_bias=norm == "layer"
        )
        for (mixer, mixer_config), (ffn, ffn_config), norm, placement in parts
    }


def _covering(variants: dict[str, ModelConfig]) -> dict[str, ModelConfig]:
    """A tenth of them: every pair of mixer and feed-forward, with norms and placements taken in turn."""
    turns = list(product(NORMS, PLACEMENTS))
    assert len(FFNS) >= len(turns), "each mixer must get round all norms and placements"
    chosen = {}
    for mixer, (i, ffn) in product(MIXERS, enumerate(FFNS)):
        norm, placement = turns[i % len(turns)]
        name = f"{mixer}-{ffn}-{norm}-{placement}"
        chosen[name] = variants[name]
    return chosen


_PRE = BlockConfig(MIXERS["gqa"], FFNS["gated_silu"])
_NOPE = BlockConfig(MIXERS["nope"], FFNS["plain_gelu_tanh"], "layer")

WHOLE_MODELS = {
    "learned_positions": small(_NOPE, positions=LearnedPositions(64), norm_bias=True),
    "sinusoidal_positions": small(_NOPE, positions=SinusoidalPositions(64), scale_embeddings=True),
    "no_positions": small(_NOPE),
    "tied": small(_PRE, tie_embeddings=True),
    "logit_softcap": small(_PRE, logit_softcap=3.0),
    "no_final_norm": small(replace(_PRE, placement="post"), final_norm=False),
    "local_local_global": small(*[BlockConfig(MIXERS[m], FFNS["gated_silu"]) for m in ("windowed", "windowed", "mha")]),
}

EVERY_VARIANT = _every_variant() | WHOLE_MODELS
"""The full product, for tests marked slow."""

VARIANTS = _covering(_every_variant()) | WHOLE_MODELS
"""A tenth of it, which meets every (mixer, norm, placement) and every (mixer, feed-forward)."""


def build(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model in which no parameter is at a value that hides it: gains are not one, biases not zero."""
    model = Transformer(config)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def tokens(batch: int = 2, seq: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB, (batch, seq), generator=torch.Generator().manual_seed(seed))
