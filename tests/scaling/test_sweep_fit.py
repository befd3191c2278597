"""The parabola: exact on exact scores, an interval that is right as often as it says, silent where none fits."""

import math

import numpy as np
import pytest

from groundup.scaling.sweep_fit import Score, best_rate, mean_scores

RATES = [0.001 * 2**i for i in range(9)]


def scores(best, curvature=0.1, noise=0.0, seeds=3, rates=RATES, random=None):
    """Seeds differ by an offset; the rest is a parabola in log rate, and noise."""
    random = random or np.random.default_rng(0)
    return [
        Score(r, s, 2.0 + 0.3 * s + curvature * math.log(r / best) ** 2 + noise * float(random.standard_normal()))
        for s in range(seeds)
        for r in rates
    ]


@pytest.mark.parametrize("best", [0.005, 0.016, 0.0371])
def test_an_exact_parabola_is_found_exactly(best):
    found = best_rate(scores(best), window=4.0)
    assert found.rate == pytest.approx(best)
    assert found.bits_per_byte == pytest.approx(2.3)  # the mean of 2.0, 2.3 and 2.6
    assert found.curvature == pytest.approx(0.1)
    assert found.low == pytest.approx(best) == found.high
    assert len(found.fitted) == 5


def test_by_hand():
    """Scores 3, 2, 3 at 1/e, 1 and e times 0.01: the middle is best, c is 1, and nothing is left for an error."""
    found = best_rate([Score(0.01 * math.exp(x), 0, 2.0 + x * x) for x in (-1, 0, 1)], window=10.0)
    assert (found.rate, found.bits_per_byte, found.curvature) == pytest.approx((0.01, 2.0, 1.0))
    assert (found.low, found.high) == (None, None)


def test_it_is_numpys_polynomial_with_one_seed():
    found = best_rate(scores(0.02, noise=0.01, seeds=1), window=1e9)
    c, b, _ = np.polyfit(np.log(RATES), [s.bits_per_byte for s in scores(0.02, noise=0.01, seeds=1)], 2)
    assert found.rate == pytest.approx(math.exp(-b / (2 * c)))


def test_the_interval_holds_the_truth_in_95_of_100():
    random = np.random.default_rng(1)
    found = [best_rate(scores(0.02, noise=0.01, random=random), window=4.0) for _ in range(600)]
    intervals = [(fit.low, fit.high) for fit in found if fit and fit.low is not None and fit.high is not None]
    assert len(intervals) == len(found)
    share = sum(low <= 0.02 <= high for low, high in intervals) / len(found)
    assert share == pytest.approx(0.95, abs=0.03)


def test_what_is_no_parabola_widens_the_interval():
    bent = [Score(s.rate, s.seed, s.bits_per_byte + 0.05 * (s.rate > 0.05)) for s in scores(0.02)]
    exact, wide = best_rate(scores(0.02), 4.0), best_rate(bent, 4.0)
    assert exact and exact.high and exact.low and wide and wide.high and wide.low
    assert exact.high / exact.low == pytest.approx(1)
    assert wide.high / wide.low > 1.04


@pytest.mark.parametrize(
    "given",
    [
        [],
        scores(0.02, rates=[0.01, 0.02]),
        scores(0.0001),  # still falling at the lowest
        scores(10.0),  # still falling at the highest
        scores(0.02, curvature=-0.1),
    ],
)
def test_what_is_not_bracketed_has_no_best(given):
    assert best_rate(given, window=4.0) is None


def test_means_by_rate():
    assert mean_scores([Score(0.2, 0, 3.0), Score(0.1, 0, 1.0), Score(0.2, 1, 5.0)]) == {0.1: 1.0, 0.2: 4.0}
    assert list(mean_scores([Score(0.2, 0, 3.0), Score(0.1, 0, 1.0)])) == [0.1, 0.2]
