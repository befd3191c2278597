r"""How large a mixture of experts, with how fine experts, for a number of FLOPs: the law of fine-grained experts.

    L(N, D, G) = c + (g / G^gamma + a) / N^alpha + b / D^beta        nats per token

Krajewski et al. 2024 (arXiv:2402.07871). N counts all parameters of the blocks (no embeddings), D tokens. G is the
granularity: how many times narrower an expert is than the feed-forward layer that it replaces, so that G of them are
active. The expansion rate E is how many times the experts together are as large as that layer: E G experts in all. The
constants were fitted at E = 64 only, and hold for no other. With the paper's shapes, n blocks of width d = 64 n,

    active = 12 d^2 n,   N = (8 E + 4) d^2 n,   FLOPs = (6 * 12 d^2 + 14 E G d) n D

The second term is the router's, which is why finer experts do not pay for ever. Losses are of C4 with the paper's
vocabulary: they compare with those of the paper's dense fit, not with Chinchilla's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from groundup.accounting.compute_optimal import Chinchilla
from groundup.accounting.search import least

ASPECT = 64
"""Width over blocks of the paper's models."""

ROUTER_FLOPS = 14
"""c_r of the paper: per score, forward and backward."""

BLOCK_FLOPS = 6
GRANULARITIES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class FineGrained:
    """The constants of a fit of L(N, D, G), and the expansion rate that it was fitted at."""

    floor: float
    size_scale: float
    size_exponent: float
    granularity_scale: float
    granularity_exponent: float
    data_scale: float
    data_exponent: float
    expansion: float
    fitted_on: str

    def loss(self, parameters: float, tokens: float, granularity: float) -> float:
        """Nats per token of a mixture with `parameters` in all."""
        if min(parameters, tokens, granularity) <= 0:
            raise ValueError(f"scaling law: parameters={parameters}, tokens={tokens}, granularity={granularity}; "
                             "expected positive numbers")  # fmt: skip
        scale = self.granularity_scale / granularity**self.granularity_exponent + self.size_scale
        return self.floor + scale / parameters**self.size_exponent + self.data_scale / tokens**self.data_exponent


@dataclass(frozen=True)
class MoEOptimum:
    """`active` are the parameters of the blocks that a token meets, `parameters` all of them."""

    active: float
    parameters: float
    tokens: float
    granularity: int
    loss: float

    @property
    def tokens_per_parameter(self) -> float:
        """Of those that are active: a mixture wants more than a dense model."""
        return self.tokens / self.active


KRAJEWSKI = FineGrained(
    floor=0.47,
    size_scale=18.1,
    size_exponent=0.115,
    granularity_scale=2.1,
    granularity_exponent=0.58,
    data_scale=30.8,
    data_exponent=0.147,
    expansion=64,
    fitted_on="Krajewski et al. 2024 (arXiv:2402.07871), 64 times the feed-forward parameters, rounded as printed",
)
KRAJEWSKI_DENSE = Chinchilla(
    0.47, 16.3, 0.126, 26.7, 0.127, fitted_on="dense models of Krajewski et al. 2024 (arXiv:2402.07871)"
)


def total_parameters(active: float, expansion: float) -> float:
    """N of blocks whose dense twins have `active`: a third of them is attention, two thirds are multiplied.

    >>> total_parameters(12e6, 64) / 1e6
    516.0
    """
    return active * (8 * expansion + 4) / 12


def flops_per_token(active: float, expansion: float, granularity: float) -> float:
    """Of training: 6 per active parameter, and the router's."""
    width = (ASPECT * active / 12) ** (1 / 3)
    return BLOCK_FLOPS * active + ROUTER_FLOPS * expansion * granularity * width * width / ASPECT


def moe_optimum(flops: float, granularities: Sequence[int] = GRANULARITIES, law: FineGrained = KRAJEWSKI) -> MoEOptimum:
    """The size, tokens and granularity of least loss for so many training FLOPs, among these granularities."""
    if not 0 < flops < math.inf:
        raise ValueError(f"scaling law: flops={flops}; expected a positive number")
    if not granularities or min(granularities) < 1:
        raise ValueError(f"scaling law: granularities={tuple(granularities)}; expected some of at least 1")
    return min((_best_size(flops, granularity, law) for granularity in granularities), key=lambda best: best.loss)


def _best_size(flops: float, granularity: int, law: FineGrained) -> MoEOptimum:
    def at(active: float) -> MoEOptimum:
        tokens = flops / flops_per_token(active, law.expansion, granularity)
        total = total_parameters(active, law.expansion)
        return MoEOptimum(active, total, tokens, granularity, law.loss(total, tokens, granularity))

    middle = math.sqrt(flops / BLOCK_FLOPS)
    return at(least(lambda active: at(active).loss, middle * 1e-6, middle * 1e3))
