"""What a sweep may be told."""

import pytest

from groundup.scaling.sweep_settings import SweepSettings


def test_the_grid_is_even_in_the_logarithm_and_ends_at_high():
    assert SweepSettings(low=0.001, high=0.008, ratio=2.0).grid == (0.001, 0.002, 0.004, 0.008)
    assert SweepSettings(low=0.001, high=0.0079, ratio=2.0).grid == (0.001, 0.002, 0.004)
    assert SweepSettings(low=0.001, high=1.0, ratio=10.0).grid == (0.001, 0.01, 0.1, 1.0)


def test_a_runs_settings_are_the_sweeps():
    training = SweepSettings(d_model=96, vocab_size=300, scored_bytes=77).training(16)
    assert (training.d_model, training.vocab_size, training.scored_bytes, training.batch_size) == (96, 300, 77, 16)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"low": 0.1, "high": 0.01}, "expected rising rates"),
        ({"highest": 0.05}, "expected rising rates"),
        ({"ratio": 1.0}, "ratio=1.0: a factor"),
        ({"edge_factor": 0.5}, "edge_factor=0.5: a factor"),
        ({"ratio": 1.001}, "more than 60 rates"),
        ({"batch_sizes": ()}, "at least one"),
        ({"batch_sizes": (8, 8)}, "different values"),
        ({"batch_sizes": (0,)}, "at least 1"),
        ({"weight_decays": (-0.1,)}, "at least 0"),
        ({"seeds": 0}, "seeds=0: must be at least 1"),
        ({"clip": 0.0}, "clip=0.0: must be a positive number"),
        ({"d_model": 0}, "d_model=0"),
        ({"vocab_size": 100}, "vocab_size=100"),
    ],
)
def test_what_is_refused(wishes, message):
    with pytest.raises(ValueError, match=message):
        SweepSettings(**wishes)
