"""MFU: by hand, and never above 1."""

import pytest

from groundup.accounting.utilization import mfu
from groundup.train import Run


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


def test_the_record_of_a_step_keeps_below_1_too():
    run = Run(step=2, losses=[3.0, 2.0], tokens=200, step_seconds=[1.0, 1.0])
    assert run.record(2, 0.004)["mfu"] == pytest.approx(0.4)
    assert run.record(2, 0.5)["mfu"] == 1.0
