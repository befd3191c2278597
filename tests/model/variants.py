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
    GatedDeltaConfig,
    GatedLinearConfig,
    HashRouter,
    LatentAttentionConfig,
    LearnedPositions,
    LSTMConfig,
    Mamba2Config,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    NeuralNgramConfig,
    ReinforceRouter,
    Rope,
    SinusoidalPositions,
    StraightThroughRouter,
    TopKRouter,
    Transformer,
)
from groundup.model.rope_scaling import YarnScaling
from tests.thorough import one_in

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
    "sink_tokens": AttentionConfig(4, 2, 4, window=2, sink_tokens=1),
    "sinks": AttentionConfig(4, 2, 4, sinks=True),
    "alibi": AttentionConfig(4, 2, 4, rope=None, alibi=True),
    "qk_norm_whole": AttentionConfig(4, 2, 4, qk_norm="whole", scale=0.3),
    "yarn": AttentionConfig(4, 2, 8, rope=Rope(100.0, fraction=0.5, scaling=YarnScaling(4.0, 8))),
    "latent": LatentAttentionConfig(4, kv_rank=8, d_nope=4, d_rope=2, d_value=6),
    "latent_queries": LatentAttentionConfig(2, kv_rank=32, d_nope=8, d_rope=4, d_value=8, q_rank=12),
    "gated_linear": GatedLinearConfig(2, 4, 6, rank=3),
    "mamba2": Mamba2Config(4, d_head=6, d_state=5, num_groups=2),
    "gated_delta": GatedDeltaConfig(4, 5, 6, num_key_heads=2),
    "lstm": LSTMConfig(12),
    "neural_ngram": NeuralNgramConfig(4, 12, direct=True),
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
        "moe_straight_through": MoEConfig(4, 2, 12, router=StraightThroughRouter(gumbel=True)),
        "moe_reinforce": MoEConfig(4, 1, 12, router=ReinforceRouter()),
    }
)

NORMS = ("rms", "layer")


def small(*blocks: BlockConfig, **options) -> ModelConfig:
    """Two layers, or one of each block."""
    return ModelConfig(VOCAB, D_MODEL, max(2, len(blocks)), blocks, **options)


TURNS = list(product(NORMS, PLACEMENTS))


def _variant(mixer: str, ffn: str, norm: str, placement: str) -> tuple[str, ModelConfig]:
    block = BlockConfig(MIXERS[mixer], FFNS[ffn], norm, placement)
    return f"{mixer}-{ffn}-{norm}-{placement}", small(block, norm_bias=norm == "layer")


KINDS = [name for name in FFNS if name.endswith(("_silu", "_bias")) or name.startswith("moe_")]
"""Feed-forward layers that differ in more than their activation."""


def _every_variant(distance: int = 1) -> dict[str, ModelConfig]:
    """Every mixer with every kind of feed-forward layer in every placement; the norms alternate.

    distance: as many as there are placements leave each mixer in one of them with each kind of feed-forward layer, so
    that all pairs are still met.
    """
    parts = product(enumerate(MIXERS), enumerate(KINDS), enumerate(PLACEMENTS))
    return dict(
        _variant(mixer, ffn, NORMS[(i + j + k) // len(PLACEMENTS) % len(NORMS)], placement)
        for (i, mixer), (j, ffn), (k, placement) in parts
        if (i + j + k) % distance == 0
    )


def _covering() -> dict[str, ModelConfig]:
    """Every mixer, and every feed-forward layer, with every norm and placement."""
    mixers, ffns = list(MIXERS), list(FFNS)
    rounds = range(max(len(mixers), len(ffns)))
    return dict(
        _variant(mixers[i % len(mixers)], ffns[(i + j) % len(ffns)], *turn)
        for i, (j, turn) in product(rounds, enumerate(TURNS))
    )


_PRE = BlockConfig(MIXERS["gqa"], FFNS["gated_silu"])
_NOPE = BlockConfig(MIXERS["nope"], FFNS["plain_gelu_tanh"], "layer")
_RETENTION = GatedLinearConfig(2, 4, 6, decay="fixed")
_LINEAR = GatedLinearConfig(2, 4, 6, decay="none", features="elu", output_gate=False)

WHOLE_MODELS = {
    "learned_positions": small(_NOPE, positions=LearnedPositions(64), norm_bias=True),
    "sinusoidal_positions": small(_NOPE, positions=SinusoidalPositions(64), scale_embeddings=True),
    "no_positions": small(_NOPE),
    "tied": small(_PRE, tie_embeddings=True),
    "logit_softcap": small(_PRE, logit_softcap=3.0),
    "no_final_norm": small(replace(_PRE, placement="post"), final_norm=False),
    "local_local_global": small(*[BlockConfig(MIXERS[m], FFNS["gated_silu"]) for m in ("windowed", "windowed", "mha")]),
    "retention": small(replace(_PRE, mixer=_RETENTION)),
    "decay_per_head": small(replace(_PRE, mixer=replace(_RETENTION, decay="head"))),
    "linear_attention": small(replace(_PRE, mixer=_LINEAR)),
    "mamba2_alone": small(BlockConfig(MIXERS["mamba2"], None), tie_embeddings=True),
    "mamba2_mamba2_gqa": small(*[BlockConfig(MIXERS[m], FFNS["gated_silu"]) for m in ("mamba2", "mamba2", "gqa")]),
}

EVERY_VARIANT = _every_variant() | WHOLE_MODELS
"""Every mixer with every kind of feed-forward layer in every placement."""

EVERY_PAIR = _every_variant(one_in(len(PLACEMENTS))) | WHOLE_MODELS
"""Of these as many as meet every pair of a mixer, a kind of feed-forward layer and a placement, for tests marked slow;
GROUNDUP_THOROUGH=6 has them all."""

VARIANTS = _covering() | WHOLE_MODELS
"""Every mixer, and every feed-forward layer, with every norm and placement, but not with each other."""


_ENCODER = BlockConfig(AttentionConfig(4, 2, 4, causal=False), FFNS["gated_silu"])
_BOTH_SIDES = {
    "window": {"window": 3},
    "alibi": {"rope": None, "alibi": True},
    "sinks": {"sinks": True},
    "softcap": {"softcap": 1.5, "qk_norm": True},
}

ENCODERS = (
    {"plain": small(_ENCODER), "causal_then_not": small(_PRE, _ENCODER)}
    | {name: small(replace(_ENCODER, mixer=replace(_ENCODER.mixer, **o))) for name, o in _BOTH_SIDES.items()}
    | {placement: small(replace(_ENCODER, placement=placement)) for placement in PLACEMENTS}
)
"""Models that look ahead, to which what holds of caches and of causality does not apply."""


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
