r"""The best learning rate, between those that were tried: a parabola in the logarithm of the rate.

    score_s(rate) = a_s + b x + c x^2,   x = log(rate / middle),   best = middle exp(-b / 2c)

a_s is what seed s adds to all its scores. Only rates next to the best one that was tried should take part: a little
further up the loss rises like a cliff, and no parabola follows it. The interval is by the delta method: with S the
covariance of (b, c) from the least squares, the vertex v = -b / 2c has the variance g' S g, g = (-1 / 2c, b / 2c^2),
and Student's t has as many degrees of freedom as there are scores without the coefficients. What is not a parabola
about the curve is in the residuals, and so widens it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from groundup.scaling.verdict import LEVEL, t_quantile


@dataclass(frozen=True)
class Score:
    """What a run scored, in bits per byte."""

    rate: float
    seed: int
    bits_per_byte: float


@dataclass(frozen=True)
class BestRate:
    """The parabola's vertex with its 95 % interval (None: too few scores), and its height, a mean over the seeds.

    `curvature` is c: a rate that is off by a factor f costs c (log f)^2 bits per byte. `fitted` are the rates that took
    part.
    """

    rate: float
    low: float | None
    high: float | None
    bits_per_byte: float
    curvature: float
    fitted: tuple[float, ...]


def best_rate(scores: Sequence[Score], window: float) -> BestRate | None:
    """Fit the rates within a factor `window` of the one with the best mean.

    None where there are fewer than three, the parabola opens downwards, or its vertex lies outside of them: then the
    best rate is not bracketed by what was tried.
    """
    means = mean_scores(scores)
    if not means:
        return None
    middle = min(means, key=lambda rate: means[rate])
    near = [s for s in scores if abs(math.log(s.rate / middle)) <= math.log(window) * (1 + 1e-9)]
    rates, seeds = sorted({s.rate for s in near}), sorted({s.seed for s in near})
    if len(rates) < 3:
        return None
    x = np.log([s.rate / middle for s in near])
    seed_columns = [[float(s.seed == seed) for s in near] for seed in seeds]
    design = np.column_stack([x, x * x, *seed_columns])
    y = np.array([s.bits_per_byte for s in near])
    found = np.linalg.lstsq(design, y, rcond=None)[0]
    b, c = float(found[0]), float(found[1])
    if c <= 0 or not math.log(rates[0] / middle) <= -b / (2 * c) <= math.log(rates[-1] / middle):
        return None
    vertex = -b / (2 * c)
    half = _half_width(design, y - design @ found, b, c)
    low, high = (None, None) if half is None else (middle * _exp(vertex - half), middle * _exp(vertex + half))
    height = float(np.mean(found[2:])) - b * b / (4 * c)
    return BestRate(middle * math.exp(vertex), low, high, height, c, tuple(rates))


def mean_scores(scores: Sequence[Score]) -> dict[float, float]:
    """By rate, from low to high."""
    by_rate: dict[float, list[float]] = {}
    for score in sorted(scores, key=lambda s: s.rate):
        by_rate.setdefault(score.rate, []).append(score.bits_per_byte)
    return {rate: math.fsum(bits) / len(bits) for rate, bits in by_rate.items()}


def _half_width(design: np.ndarray, residuals: np.ndarray, b: float, c: float) -> float | None:
    """Of the vertex's interval in x; None without a degree of freedom."""
    freedom = design.shape[0] - design.shape[1]
    if freedom < 1:
        return None
    variance = float(residuals @ residuals) / freedom
    covariance = variance * np.linalg.inv(design.T @ design)[:2, :2]
    slope = np.array([-1 / (2 * c), b / (2 * c * c)])
    return t_quantile(LEVEL, freedom) * math.sqrt(max(0.0, float(slope @ covariance @ slope)))


def _exp(x: float) -> float:
    return math.exp(min(max(x, -700.0), 700.0))
