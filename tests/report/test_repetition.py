import math

import pytest

from groundup.report.repetition import advice, worth_of_repeats


def test_worth_falls_from_one_as_the_formula_says():
    assert worth_of_repeats(0.0) == worth_of_repeats(0.3) == worth_of_repeats(1) == 1
    for epochs in (2.0, 4.0, 16.0, 60.0):
        distinct = 1 + 15.387756 * (1 - math.exp(-(epochs - 1) / 15.387756))
        assert worth_of_repeats(epochs) == pytest.approx(distinct / epochs)


def test_four_passes_are_nearly_free_and_sixty_are_not():
    # Muennighoff et al. 2023: up to 4 epochs are almost as good as new data, about 16 half as good on the margin.
    assert worth_of_repeats(4) > 0.9
    assert worth_of_repeats(60) < 0.3


@pytest.mark.parametrize(
    ("epochs", "words"),
    [(0.5, "No text was repeated"), (3, "still worth"), (10, "More text would now help"), (80, "next to nothing")],
)
def test_advice(epochs, words):
    assert words in advice(epochs)


def test_weights_from_before_the_end_are_said():
    assert "After 5.0 of 20.0 passes" in advice(20.0, kept=0.25)
    assert "the weights from then" not in advice(20.0, kept=1.0)
