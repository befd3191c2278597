"""A permutation for every epoch, without storing one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.data.order import Order, draw, permute


@given(size=st.integers(1, 400), key=st.integers(0, 2**64 - 1))
def test_a_permutation(size, key):
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@pytest.mark.parametrize("size", [2**16, 2**16 + 1, 99_991])
def test_a_large_permutation(size):
    assert np.array_equal(np.sort(permute(np.arange(size), size, 7)), np.arange(size))


def test_a_huge_range_needs_no_memory():
    places = np.arange(10**12, 10**12 + 1000)
    found = permute(places, 10**13, key=1)
    assert len(set(found.tolist())) == 1000
    assert found.min() >= 0 and found.max() < 10**13


def test_items_go_anywhere_with_equal_probability():
    """Chi-squared of where item 0 of 8 goes, for 2,000 keys: of 7 degrees of freedom 99.99 % are below 30."""
    counts = np.bincount([permute(np.zeros(1, np.int64), 8, key)[0] for key in range(2000)], minlength=8)
    assert float(((counts - 250) ** 2 / 250).sum()) < 30


def test_neighbours_are_parted():
    """Of 10,000 neighbours a random permutation leaves about 2 in place side by side."""
    found = permute(np.arange(10_000), 10_000, key=3)
    assert (np.abs(np.diff(found)) == 1).sum() < 15
    assert abs(np.corrcoef(found, np.arange(10_000))[0, 1]) < 0.05


def test_the_order_is_the_same_everywhere():
    """Written down once: a change here would break every resumed run."""
    assert Order(10, seed=0).items(np.arange(20)).tolist() == [
        7,
        3,
        1,
        6,
        2,
        8,
        4,
        0,
        5,
        9,
        4,
        0,
        9,
        8,
        6,
        3,
        1,
        5,
        2,
        7,
    ]
    assert draw(0, 0, "order") == 5489631442343345043


def test_epochs_differ_and_each_is_whole():
    order = Order(50, seed=1)
    first, second = order.items(np.arange(50)), order.items(np.arange(50, 100))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, Order(50, seed=2).items(np.arange(50)))


EVERYTHING = Order(37, seed=5).items(np.arange(501))


@given(st.lists(st.integers(0, 500), min_size=1, max_size=30))
def test_any_place_alone_is_as_in_sequence(samples):
    order = Order(37, seed=5)
    assert np.array_equal(order.items(np.array(samples)), EVERYTHING[samples])
