"""The lecture's two envelopes."""

import pytest

from groundup.accounting import largest_model, training_days


def test_70_billion_parameters_on_15_trillion_tokens():
    """6 x 70e9 x 15e12 FLOPs, over 1,024 x 989.5e12 x 0.5 per second."""
    assert training_days(70e9, 15e12, 1024) == pytest.approx(143.9, abs=0.1)


def test_time_falls_with_devices_and_utilisation():
    once = training_days(1e9, 20e9, 1, mfu=0.25)
    assert training_days(1e9, 20e9, 8, mfu=0.5) == pytest.approx(once / 16)


def test_the_largest_model_on_eight_devices():
    assert largest_model(8) == 40e9
    assert largest_model(8, bytes_per_parameter=18) == pytest.approx(35.6e9, rel=1e-2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mfu": 0.0}, "mfu=0.0; expected a positive number"),
        ({"mfu": 1.5}, "mfu=1.5; expected a share"),
        ({"devices": 0}, "devices=0"),
        ({"tokens": float("nan")}, "tokens=nan"),
    ],
)
def test_numbers_that_make_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        training_days(**({"parameters": 1e9, "tokens": 1e9, "devices": 1} | wrong))
