"""Rows: every sequence once, no row too full, few rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.data import pack


def test_by_hand():
    assert pack([], 5) == []
    assert pack([5, 5], 5) == [[0], [1]]
    assert pack([3, 4, 2, 1], 5) == [[1, 3], [0, 2]]
    assert pack([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]


@given(st.lists(st.integers(1, 20), max_size=60))
def test_every_sequence_once_and_no_row_too_full(lengths):
    rows = pack(lengths, 20)
    assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[n] for n in row) <= 20 for row in rows)
    least = -(-sum(lengths) // 20)
    assert len(rows) <= 11 / 9 * max(least, sum(n > 10 for n in lengths)) + 4
    assert sum(sum(lengths[n] for n in row) <= 10 for row in rows) <= 1  # two half-empty rows would be one


def test_too_long_is_a_fault_of_the_caller():
    with pytest.raises(AssertionError):
        pack([6], 5)
