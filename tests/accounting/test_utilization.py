"""MFU: by hand, and never above 1."""

import pytest

from groundup.accounting.utilization import mfu


def test_by_hand():
    # 6 FLOPs for each of 1e9 parameters, 40,000 tokens a second, on a device of 989 TFLOP/s.
    assert mfu(6e9, 40_000, 989e12) == pytest.approx(0.24267, abs=1e-5)
    assert mfu(6e9, 0.0, 989e12) == 0.0


def test_a_rate_above_the_peak_is_itself_the_peak():
    assert mfu(1e9, 1001.0, 1e12) == 1.0
    assert mfu(1e9, 999.0, 1e12) == pytest.approx(0.999)


@pytest.mark.parametrize(("flops", "peak"), [(0.0, 1.0), (1.0, 0.0), (1.0, float("nan"))])
def test_what_no_share_can_be_taken_of_is_refused(flops, peak):
    with pytest.raises(ValueError, match="expected a positive number"):
        mfu(flops, 1.0, peak)
