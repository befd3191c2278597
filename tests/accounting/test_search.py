"""Roots and minima over many powers of ten."""

import math

import pytest

from groundup.accounting.search import least, root


@pytest.mark.parametrize("answer", [1e-9, 3.0, 7e17])
def test_a_root_is_found_wherever_it_is(answer):
    assert root(lambda x: math.log(x / answer), 1e-12, 1e20) == pytest.approx(answer, rel=1e-12)


@pytest.mark.parametrize("answer", [1e-9, 3.0, 7e17])
def test_a_minimum_is_found_wherever_it_is(answer):
    assert least(lambda x: math.log(x / answer) ** 2, 1e-12, 1e20) == pytest.approx(answer, rel=1e-6)


def test_the_deeper_of_two_valleys_beside_a_wall():
    def valleys(x):
        return math.inf if x > 1e6 else min(math.log(x) ** 2, math.log(x / 1e4) ** 2 - 1)

    assert least(valleys, 1e-3, 1e9) == pytest.approx(1e4, rel=1e-6)


def test_a_minimum_at_the_end_stays_inside():
    assert least(lambda x: x, 2.0, 5.0) == pytest.approx(2.0, rel=1e-6)
