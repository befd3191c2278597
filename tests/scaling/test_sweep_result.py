"""The result of a sweep from its runs: what is best, what is said of edges that were not found."""

import pytest

from groundup.scaling.sweep_result import summarize
from groundup.scaling.sweep_settings import SweepSettings

SETTINGS = SweepSettings(low=0.004, high=0.128, highest=1.0, seeds=2)
# Means of a real sweep: almost flat around the best rate, then a cliff.
CURVE = {0.004: 2.704, 0.008: 2.495, 0.016: 2.410, 0.032: 2.396, 0.064: 2.430, 0.128: 3.108}


def made(scores, settings=SETTINGS):
    runs = [
        {"batch_size": 8, "weight_decay": 0.1, "rate": rate, "seed": seed, "steps": 60, "seconds": 1.0,
         "diverged": bits is None, "fault": None if bits else "rose", "bits_per_byte": bits and bits + 0.01 * seed}
        for rate, bits in scores.items()
        for seed in range(2)
    ]  # fmt: skip
    return summarize(settings, {"8": 60}, runs)


def test_a_cliff_beside_the_best_rate_does_not_bend_the_parabola():
    (cell,) = made(CURVE)["cells"]
    assert cell["best_tried"]["rate"] == 0.032
    assert cell["best"]["fitted"] == [0.016, 0.032, 0.064]
    # By hand, in powers of two around 0.032: b = 0.010, c = 0.024, so 2^-0.208 times 0.032.
    assert cell["best"]["rate"] == pytest.approx(0.032 * 2**-0.208, rel=1e-3)
    assert cell["best"]["bits_per_byte"] == pytest.approx(2.396 + 0.005 - 0.01**2 / (4 * 0.024), abs=1e-6)
    assert cell["best"]["bits_per_byte"] == pytest.approx(cell["best_tried"]["bits_per_byte"], abs=0.005)


def test_what_was_not_found_is_said():
    above = made(CURVE)
    assert above["cells"][0]["edge"] == {"stable": 0.128, "diverged": None, "factor": None}
    assert any("no rate up to 0.128 diverged" in note for note in above["notes"])
    lost = made(dict.fromkeys(CURVE))
    assert lost["best"] is None and lost["cells"][0]["best_tried"] is None
    assert any("every rate diverged" in note for note in lost["notes"])
    falling = made({rate: 3 - rate for rate in CURVE})
    assert falling["cells"][0]["best"] is None and falling["best"]["best_tried"]["rate"] == 0.128
    assert any("no parabola" in note for note in falling["notes"])


def test_a_lower_rate_that_diverged_is_said_and_left_out():
    result = made({**CURVE, 0.032: None})
    (cell,) = result["cells"]
    assert cell["edge"]["stable"] == 0.128
    assert any("lower rates diverged too (0.032)" in note for note in result["notes"])
    assert cell["best_tried"]["rate"] == 0.016


def test_the_best_cell_is_that_of_the_lowest_loss():
    settings = SweepSettings(low=0.01, high=0.04, seeds=1, batch_sizes=(4, 8))
    runs = [
        {"batch_size": size, "weight_decay": 0.1, "rate": rate, "seed": 0, "steps": 60, "seconds": 1.0,
         "diverged": False, "fault": None, "bits_per_byte": 2.0 + abs(rate - 0.02) + size / 100}
        for size in (4, 8)
        for rate in settings.grid
    ]  # fmt: skip
    result = summarize(settings, {"4": 60, "8": 30}, runs)
    assert (result["best"]["batch_size"], result["best"]["best_tried"]["rate"]) == (4, 0.02)
    assert [cell["steps"] for cell in result["cells"]] == [60, 30]
