"""The loss law: worked by hand, monotone where it must be, and repeats worth less than fresh text."""

import math
from dataclasses import replace

import pytest

from groundup.accounting.law import BUILD_LAW, MOST_DIFFICULTY, LossLaw

LAW = LossLaw(
    floor=1.0, size_scale=1000.0, size_exponent=1.0, data_scale=50_000.0, data_exponent=0.5, repeat_worth=10.0,
    reference_zstd=2.0, zstd_exponent=2.0, reference_ngram=1.5, ngram_exponent=0.5, fitted_bytes=1e6, residual=0.01,
    fitted_on="a made-up example",
)  # fmt: skip


def test_by_hand():
    # 1 + sqrt((1000 / 500)^2 + 50_000 / 10_000) = 4, on text half as hard: 2
    assert LAW.bits_per_byte(500, 10_000, 1.0, 0.5) == pytest.approx(2.0)


def test_difficulty_by_hand_prefers_the_ngram():
    assert LAW.difficulty(4.0, None) == pytest.approx(4.0)
    assert LAW.difficulty(4.0, 6.0) == pytest.approx(2.0)
    assert LAW.difficulty(200.0, None) == MOST_DIFFICULTY
    assert LAW.difficulty(0.001, None) == 1 / MOST_DIFFICULTY
    assert LAW.difficulty(2.0, 1.5) == LAW.difficulty(2.0, None) == 1.0


def test_repeats_by_hand():
    assert LAW.effective_bytes(1000, 3.0) == pytest.approx(1000 * (1 + 10 * (1 - math.exp(-0.2))))


@pytest.mark.parametrize("epochs", [0.01, 0.5, 1.0, 1.5, 4.0, 20.0, 200.0])
def test_a_repeat_never_beats_fresh_text_and_never_hurts(epochs):
    effective = BUILD_LAW.effective_bytes(1e6, epochs)
    assert effective <= 1e6 * epochs * (1 + 1e-12)
    assert effective <= 1e6 * (1 + BUILD_LAW.repeat_worth)
    assert BUILD_LAW.effective_bytes(1e6, epochs * 1.1) > effective


def test_more_of_anything_lowers_the_loss():
    base = BUILD_LAW.bits_per_byte(1e6, 1e7, 1.0, 1.0)
    assert BUILD_LAW.bits_per_byte(2e6, 1e7, 1.0, 1.0) < base
    assert BUILD_LAW.bits_per_byte(1e6, 2e7, 1.0, 1.0) < base
    assert BUILD_LAW.bits_per_byte(1e6, 1e7, 2.0, 1.0) < base
    assert BUILD_LAW.bits_per_byte(1e6, 1e7, 1.0, 1.1) > base
    assert BUILD_LAW.bits_per_byte(1e30, 1e30, 1.0) == pytest.approx(BUILD_LAW.floor, abs=0.01)


def test_size_counts_for_little_while_there_is_little_text():
    little, much = (
        BUILD_LAW.bits_per_byte(2e6, text, 1.0) - BUILD_LAW.bits_per_byte(2e7, text, 1.0) for text in (1e6, 3e7)
    )
    assert 0 < little < much


def test_no_text_at_all_is_not_a_division_by_zero():
    assert math.isfinite(replace(LAW).bits_per_byte(1e6, 0, 1.0))


def test_the_interval_widens_with_distance_on_both_sides():
    near, harder, easier = (BUILD_LAW.error(1.2, d) for d in (1.0, 1.5, 1 / 1.5))
    assert near == pytest.approx(2 * BUILD_LAW.residual * 1.2)
    assert harder == pytest.approx(easier)
    assert harder > 2 * near


def test_the_interval_widens_for_runs_shorter_than_the_fitted_ones():
    enough = BUILD_LAW.error(1.2, 1.0, effective_bytes=BUILD_LAW.fitted_bytes)
    assert enough == BUILD_LAW.error(1.2, 1.0)
    assert BUILD_LAW.error(1.2, 1.0, effective_bytes=BUILD_LAW.fitted_bytes / 3) > 2 * enough
