"""Is one variant better than another, given how much runs differ by their seed alone?

The runs of a seed share the order of the data and the generators of the weights, so a variant is compared with another
seed by seed: what the seed does to both drops out of the difference.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Verdict = Literal["better", "worse", "no difference shown"]
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """A variant minus its reference, in bits per byte: negative is better.

    `low` and `high` bound the 95 % interval of the mean, `p` is its two-sided p-value and `p_holm` the same after
    Holm's correction for all comparisons of the table; None where a run diverged. `verdict` rests on `p_holm`.
    """

    variant: str
    against: str
    differences: tuple[float | None, ...]
    mean: float | None
    low: float | None
    high: float | None
    p: float | None
    diverged: int
    reference_diverged: int
    p_holm: float | None = None
    verdict: Verdict = "no difference shown"


def paired_difference(
    variant: str, against: str, ours: Sequence[float | None], theirs: Sequence[float | None]
) -> Difference:
    """The paired t-test of two rows of scores, seed by seed; None is a run that diverged.

    t = mean / (s / sqrt(n)) with n - 1 degrees of freedom (Student 1908).
    """
    pairs = [None if a is None or b is None else a - b for a, b in zip(ours, theirs, strict=True)]
    lost = sum(a is None for a in ours), sum(b is None for b in theirs)
    finite = [d for d in pairs if d is not None]
    if len(finite) < len(pairs) or len(finite) < 2:
        mean = statistics.fmean(finite) if finite else None
        return Difference(variant, against, tuple(pairs), mean, None, None, None, *lost)
    mean, error = statistics.fmean(finite), statistics.stdev(finite) / math.sqrt(len(finite))
    freedom = len(finite) - 1
    half = t_quantile(LEVEL, freedom) * error
    p = 1.0 - t_within(abs(mean) / error, freedom) if error else float(mean == 0)
    return Difference(variant, against, tuple(pairs), mean, mean - half, mean + half, p, *lost)


def compare(differences: Sequence[Difference]) -> list[Difference]:
    """The same with Holm's correction over all of them, and their verdicts.

    A variant that diverged with every seed where its reference never did is worse, without a test; where only some
    runs diverged, nothing is shown.
    """
    adjusted = iter(holm([d.p for d in differences if d.p is not None]))
    corrected = [d if d.p is None else replace(d, p_holm=next(adjusted)) for d in differences]
    return [replace(d, verdict=_verdict(d)) for d in corrected]


def _verdict(d: Difference) -> Verdict:
    runs = len(d.differences)
    if d.diverged == runs and not d.reference_diverged:
        return "worse"
    if d.reference_diverged == runs and not d.diverged:
        return "better"
    if d.p_holm is None or d.mean is None or d.p_holm > 1 - LEVEL:
        return "no difference shown"
    return "better" if d.mean < 0 else "worse"


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: the i-th smallest of m times m - i + 1, never below the one before, at most 1.

    Holm 1979 (Scandinavian Journal of Statistics 6).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted


def t_within(t: float, freedom: int) -> float:
    """P(|T| < t) of Student's distribution, in closed form for whole degrees of freedom.

    Abramowitz & Stegun 1964, equations 26.7.3 and 26.7.4, with theta = arctan(t / sqrt(freedom)).
    """
    if freedom < 1:
        raise ValueError(f"degrees of freedom: {freedom}; expected at least 1")
    theta = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(theta)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    product = math.sin(theta) * total
    return 2 / math.pi * (theta + product) if odd else product


def t_quantile(within: float, freedom: int) -> float:
    """The t with P(|T| < t) = `within`, by bisection.

    >>> round(t_quantile(0.95, 2), 3), round(t_quantile(0.95, 9), 3)
    (4.303, 2.262)
    """
    low, high = 0.0, 1.0
    while t_within(high, freedom) < within:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, freedom) < within else (low, middle)
    return high
