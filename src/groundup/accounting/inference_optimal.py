r"""Which model is best when it will also be used: training and serving are paid from one purse.

    cost(N, D) = 6 a N D + 2 b N S        N parameters, D training tokens, S served ones (read and written)

a and b are the prices of a FLOP in training and in serving: both 1 counts FLOPs, a device's price over its peak and its
MFU counts money. A smaller model trained on more tokens reaches the same loss L(N, D) of `compute_optimal.py`, costs
more to train and less to use: Sardana et al. 2023, eq. 2 (arXiv:2401.00448), which has the derivation for FLOPs and for
money. With v = B / D^beta and u = A / N^alpha, along u + v = L - E the cost is least where

    6 a D / (6 a D + 2 b S)  =  (beta / alpha) (v / u)

whose left side falls with v and whose right side rises, so there is one such point. Without serving the left side is
1, which is Chinchilla's optimum.
"""

import math
from dataclasses import dataclass

from groundup.accounting.compute_optimal import EPOCH, FLOPS_PER_PARAMETER_AND_TOKEN, Chinchilla
from groundup.accounting.search import root

SERVING_FLOPS = 2
"""Per parameter and served token: a forward pass."""

_NARROW = 1e-13


@dataclass(frozen=True)
class Serving:
    """`tokens` that a model will read and write in its life, and what a FLOP costs in training and in serving."""

    tokens: float
    training_price: float = 1.0
    serving_price: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.tokens < math.inf:
            raise ValueError(f"serving: tokens={self.tokens}; expected 0 or a positive number")
        for name in ("training_price", "serving_price"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"serving: {name}={getattr(self, name)}; expected a positive number")

    def training_cost(self, parameters: float, tokens: float) -> float:
        """6 a N D."""
        return FLOPS_PER_PARAMETER_AND_TOKEN * self.training_price * parameters * tokens

    def serving_cost(self, parameters: float) -> float:
        """2 b N S."""
        return SERVING_FLOPS * self.serving_price * parameters * self.tokens

    def tokens_left(self, parameters: float, cost: float) -> float:
        """The D that the rest of `cost` pays for; negative where serving alone costs more."""
        return (cost - self.serving_cost(parameters)) / self.training_cost(parameters, 1.0)


@dataclass(frozen=True)
class LifetimeOptimum:
    """A model and its length of training, with what training and serving cost. `epochs` as in `Optimum`."""

    parameters: float
    tokens: float
    loss: float
    training_cost: float
    serving_cost: float
    epochs: float | None = None

    @property
    def cost(self) -> float:
        """Of the lifetime, in the unit of the prices."""
        return self.training_cost + self.serving_cost

    @property
    def tokens_per_parameter(self) -> float:
        """Rises with the tokens that are served."""
        return self.tokens / self.parameters


def price_of_flop(price_per_hour: float, peak_flops: float, mfu: float) -> float:
    """What a FLOP costs on a device of this price and dense peak (FLOPs per second) at this MFU (0 to 1).

    Decoding reaches a far smaller MFU than training, so its FLOPs are dearer:

    >>> price_of_flop(2.0, 1e15, 0.05) / price_of_flop(2.0, 1e15, 0.4)
    8.0
    """
    for name, value in (("price_per_hour", price_per_hour), ("peak_flops", peak_flops)):
        if not 0 < value < math.inf:
            raise ValueError(f"serving: {name}={value}; expected a positive number")
    if not 0 < mfu <= 1:
        raise ValueError(f"serving: mfu={mfu}; expected a share of the peak, up to 1")
    return price_per_hour / 3600 / (peak_flops * mfu)


def cheapest(loss: float, serving: Serving, law: Chinchilla = EPOCH) -> LifetimeOptimum:
    """The N and D of least cost that reach `loss` (nats per token).

    ValueError for a loss at or below the law's floor, which no model reaches.
    """
    if not law.floor < loss < math.inf:
        raise ValueError(f"scaling law: loss={loss}; this law's lie above {law.floor}")
    share, gap = serving.training_cost(1.0, 1.0), loss - law.floor
    served = serving.serving_cost(1.0)

    def excess(v: float) -> float:
        tokens = _inverse(v, law.data_scale, law.data_exponent)
        training = share * tokens / (share * tokens + served)
        return law.data_exponent / law.size_exponent * v / (gap - v) - training

    without = gap * law.size_exponent / (law.size_exponent + law.data_exponent)
    v = root(excess, without * _NARROW, without) if serving.tokens else without
    parameters = _inverse(gap - v, law.size_scale, law.size_exponent)
    return lifetime(parameters, _inverse(v, law.data_scale, law.data_exponent), loss, serving)


def best_for(cost: float, serving: Serving, law: Chinchilla = EPOCH) -> LifetimeOptimum:
    """The N and D of least loss whose training and serving cost `cost` together."""
    if not 0 < cost < math.inf:
        raise ValueError(f"serving: cost={cost}; expected a positive number")

    def excess(parameters: float) -> float:
        # The slopes of both terms in log N along the budget: equal at the optimum, and crossing once.
        tokens = serving.tokens_left(parameters, cost)
        fewer = cost / serving.training_cost(parameters, 1.0)
        data = law.data_exponent * law.data_scale * tokens ** (-law.data_exponent - 1) * fewer
        return data - law.size_exponent * law.size_scale * parameters**-law.size_exponent

    most = _largest(cost, serving)
    parameters = root(excess, most * _NARROW, most)
    tokens = serving.tokens_left(parameters, cost)
    return lifetime(parameters, tokens, law.loss(parameters, tokens), serving)


def lifetime(
    parameters: float, tokens: float, loss: float, serving: Serving, epochs: float | None = None
) -> LifetimeOptimum:
    """These, with what they cost."""
    trained, served = serving.training_cost(parameters, tokens), serving.serving_cost(parameters)
    return LifetimeOptimum(parameters, tokens, loss, trained, served, epochs)


def _largest(cost: float, serving: Serving) -> float:
    """The N that one training token and serving use up."""
    return cost / (serving.training_cost(1.0, 1.0) + serving.serving_cost(1.0))


def _inverse(term: float, scale: float, exponent: float) -> float:
    """The x with scale / x^exponent = term."""
    return (scale / term) ** (1 / exponent)
