import math
import random

import pytest
from scipy import stats

from groundup.scaling import compare, holm, paired_difference
from groundup.scaling.verdict import t_quantile, t_within


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 10, 29])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 4.3, 50.0])
def test_student_s_distribution_is_scipy_s(t, freedom):
    assert t_within(t, freedom) == pytest.approx(1 - 2 * stats.t.sf(t, freedom), abs=1e-12)


@pytest.mark.parametrize("freedom", [1, 2, 7, 30])
@pytest.mark.parametrize("within", [0.5, 0.95, 0.999])
def test_quantiles_are_scipy_s(within, freedom):
    assert t_quantile(within, freedom) == pytest.approx(stats.t.ppf(0.5 + within / 2, freedom), rel=1e-9)


def test_no_freedom_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        t_within(1.0, 0)


def test_paired_difference_by_hand():
    """Differences -1, -2, -3: mean -2, s = 1, error 1/sqrt(3), t = -3.464 with 2 degrees; 4.303 * 0.577 = 2.484."""
    made = paired_difference("a", "b", [4.0, 3.0, 2.0], [5.0, 5.0, 5.0])
    assert made.mean == -2.0
    assert made.low == pytest.approx(-2 - 4.302653 / math.sqrt(3), abs=1e-5)
    assert made.high == pytest.approx(-2 + 4.302653 / math.sqrt(3), abs=1e-5)
    assert made.p == pytest.approx(0.0742, abs=1e-4)


def test_paired_difference_is_scipy_s_paired_test():
    draw = random.Random(0)
    ours, theirs = ([draw.gauss(2, 0.1) for _ in range(6)] for _ in range(2))
    made, theirs_test = paired_difference("a", "b", ours, theirs), stats.ttest_rel(ours, theirs)
    interval = theirs_test.confidence_interval(0.95)
    assert made.p == pytest.approx(theirs_test.pvalue, rel=1e-9)
    assert (made.low, made.high) == pytest.approx((interval.low, interval.high))


def test_pairing_takes_out_what_the_seed_does_to_both():
    base = [2.0, 3.0, 4.0]
    made = paired_difference("a", "b", [x - 0.1 + e for x, e in zip(base, (0.001, 0, -0.001), strict=True)], base)
    assert made.high is not None and made.high < 0 and compare([made])[0].verdict == "better"


def test_the_interval_covers_the_truth_as_often_as_it_says():
    draw = random.Random(1)
    hits = 0
    for _ in range(1000):
        ours = [draw.gauss(0.3, 1.0) for _ in range(3)]
        made = paired_difference("a", "b", ours, [0.0] * 3)
        assert made.low is not None and made.high is not None
        hits += made.low <= 0.3 <= made.high
    assert 0.93 < hits / 1000 < 0.97


def test_holm_by_hand():
    """0.01 * 4, then 0.02 * 3, then 0.03 * 2, which may not fall below 0.06; 0.5 * 1."""
    assert holm([0.03, 0.5, 0.01, 0.02]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_difference_that_is_one_of_many_has_to_be_clearer():
    """0.3, 0.2, 0.2: t = 7, p = 0.0198 alone says "worse"; among four comparisons it is 0.079 and says nothing."""
    clear = paired_difference("a", "b", [1.3, 1.2, 1.25], [1.0, 1.0, 1.05])
    assert clear.p == pytest.approx(0.0198, abs=1e-4)
    same = [paired_difference(f"n{i}", "b", [1.0, 1.1, 0.9], [1.05, 1.0, 0.95]) for i in range(3)]
    assert compare([clear])[0].verdict == "worse"
    assert compare([clear, *same])[0].verdict == "no difference shown"


def test_equal_runs_show_no_difference():
    made = compare([paired_difference("a", "b", [1.0, 2.0], [1.0, 2.0])])[0]
    assert (made.mean, made.p, made.verdict) == (0.0, 1.0, "no difference shown")


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([None, None, None], [1.0, 1.0, 1.0], "worse"),
        ([1.0, 1.0, 1.0], [None, None, None], "better"),
        ([None, 5.0, 5.1], [1.0, 1.0, 1.0], "no difference shown"),
        ([None, None], [None, None], "no difference shown"),
        ([None, None], [None, 1.0], "no difference shown"),
    ],
)
def test_divergence_is_a_result(ours, theirs, verdict):
    made = compare([paired_difference("a", "b", ours, theirs)])[0]
    assert made.verdict == verdict and made.p is None
    assert made.diverged == ours.count(None) and made.reference_diverged == theirs.count(None)
