"""Learning a choice that has no gradient: the straight-through estimator, and REINFORCE.

A top-k router learns because the chosen experts' outputs are multiplied by their probabilities: the choice itself has
no gradient, its gates have. Here the forward pass is a hard choice, every chosen expert with the gate 1 / top_k, and
what trains the router is an estimate of the gradient: biased and quiet (straight-through), or unbiased and noisy
(REINFORCE).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from groundup.config import nearest

BASELINES = ("none", "mean", "greedy")


@dataclass(frozen=True)
class StraightThroughRouter:
    """A hard choice forward, the gradient of a softmax backward. Bengio et al. 2013, section 4 (arXiv:1308.3432).

    temperature  of the softmax whose gradient stands in for the choice's
    gumbel       in training, choose by logits plus Gumbel noise, which samples from softmax(logits), and give the
                 noisy softmax's gradient: straight-through Gumbel-softmax, Jang et al. 2016, section 2.2
                 (arXiv:1611.01144). Without noise, and in evaluation always, the best logits are chosen

    Only the chosen experts run, so only their terms of the estimate are there: the whole one needs every expert's
    output, and with it a dense layer's work.
    """

    temperature: float = 1.0
    gumbel: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"router: temperature={self.temperature}; expected a positive number, such as 1")


@dataclass(frozen=True)
class ReinforceRouter:
    """A sampled choice, trained by the score function: grad E[cost] = E[cost grad log p(choice)]. Williams 1992.

    In training top_k experts are drawn from softmax(logits), one after the other without replacement; in evaluation
    the best are taken. A choice's cost is what the objective says: the losses, in nats, that come after it.

    baseline  what is subtracted from a cost, which changes the estimate's noise and not its mean: nothing, the mean
              cost of the micro-batch's other rows at the same position (nothing where a row is alone), or what the same
              tokens cost when the best experts are taken (another forward pass; Rennie et al. 2017,
              arXiv:1612.00563)
    discount  a loss s tokens later counts discount^s. At 1 the estimate is unbiased. At 0 a choice answers for its
              own token's prediction alone: all there is to answer for in the last block, where nothing looks back at
              it, a bias in the blocks before, and far less noise
    entropy   coefficient of the mean entropy of softmax(logits), which is added as a reward so that it keeps trying

    Williams 1992, Simple statistical gradient-following algorithms, eq. 4 and section 5.
    """

    baseline: Literal["none", "mean", "greedy"] = "mean"
    discount: float = 0.0
    entropy: float = 0.01

    def __post_init__(self) -> None:
        if self.baseline not in BASELINES:
            raise ValueError(f"router: baseline {self.baseline!r} is unknown{nearest(self.baseline, BASELINES)}")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"router: discount={self.discount}; expected a number from 0 to 1")
        if not 0 <= self.entropy < float("inf"):
            raise ValueError(f"router: entropy={self.entropy}; expected at least 0, such as 0.01")


@dataclass(frozen=True)
class Choice:
    """What a layer chose at every token: log p of it, 0 for padding. The objective knows what it cost."""

    log_probs: Float[Tensor, "batch seq"]
    config: ReinforceRouter


def gumbel_noise(logits: Float[Tensor, "*tokens experts"]) -> Float[Tensor, "*tokens experts"]:
    """-ln(-ln u) for uniform u: the largest of logits + noise is a sample of softmax(logits)."""
    return -torch.empty_like(logits).exponential_().clamp(min=torch.finfo(logits.dtype).tiny).log()


def sample(logits: Float[Tensor, "tokens experts"], top_k: int) -> Int[Tensor, "tokens top_k"]:
    """top_k experts in the order in which they were drawn from softmax(logits), without replacement.

    The k largest of logits + Gumbel noise are such a sample: Kool et al. 2019, section 3 (arXiv:1903.06059).
    """
    return (logits.detach() + gumbel_noise(logits)).topk(top_k).indices


def log_prob(logits: Float[Tensor, "tokens experts"], chosen: Int[Tensor, "tokens top_k"]) -> Float[Tensor, " tokens"]:
    """ln of the probability that `sample` draws these, in this order: each among those that were still there."""
    total = logits.new_zeros(len(logits))
    for drawn in chosen.split(1, -1):
        total = total + logits.log_softmax(-1).gather(-1, drawn)[:, 0]
        logits = logits.scatter(-1, drawn, -torch.inf)
    return total


def entropy(logits: Float[Tensor, "tokens experts"]) -> Float[Tensor, " tokens"]:
    """-sum p ln p of softmax(logits), in nats."""
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def straight_through_gates(
    probabilities: Float[Tensor, "tokens experts"], chosen: Int[Tensor, "tokens top_k"]
) -> Float[Tensor, "tokens top_k"]:
    """1 / top_k exactly, with the gradient of the chosen experts' probabilities."""
    picked = probabilities.gather(-1, chosen)
    return 1 / chosen.shape[-1] + (picked - picked.detach())
