"""The gradient noise scale by hand: two equations for two unknowns."""

import pytest

from groundup.train.noise import NoiseScale


def squares(signal, noise, *sizes):
    """What the squared norms at these batch sizes are on average."""
    return [signal + noise / size for size in sizes]


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95])
def test_exact_squares_give_the_exact_scale_from_the_first_step(decay):
    scale = NoiseScale(decay)
    small, big = squares(4.0, 200.0, 8, 32)
    assert (small, big) == (29.0, 10.25)
    for _ in range(3):
        scale.observe(small, 8, big, 32)
        assert scale.tokens == pytest.approx(50.0)


def test_the_average_follows_a_change_at_its_decay():
    scale = NoiseScale(decay=0.5)
    for noise in (200.0, 400.0, 400.0):
        small, big = squares(4.0, noise, 8, 32)
        scale.observe(small, 8, big, 32)
    assert scale.noise == pytest.approx(325.0) and scale.signal == pytest.approx(3.5)


@pytest.mark.parametrize(("small_size", "big_size"), [(8, 8), (32, 8), (0, 8), (0, 0)])
def test_sizes_that_say_nothing_change_nothing(small_size, big_size):
    scale = NoiseScale()
    scale.observe(29.0, small_size, 10.25, big_size)
    assert scale.state() == {"signal": 0.0, "noise": 0.0} and scale.tokens is None


def test_no_estimate_while_an_average_is_not_positive():
    for small, big in ((1.0, 2.0), (40.0, 5.0)):  # no noise; no signal
        scale = NoiseScale()
        scale.observe(small, 8, big, 32)
        assert scale.tokens is None


def test_going_on_from_a_state():
    scale, other = NoiseScale(), NoiseScale()
    scale.observe(29.0, 8, 10.25, 32)
    other.load_state(scale.state())
    for each in (scale, other):
        each.observe(20.0, 8, 10.0, 32)
    assert other.state() == scale.state() and other.tokens == scale.tokens
