"""Packing sequences of different lengths into rows of one length, with little padding."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put every sequence, by its number, into a row: best-fit decreasing.

    Sequences are taken from long to short, and each goes to the fullest row that has room for it. The number
    of rows is at most 11/9 of the least possible, plus 4 (Johnson 1973). The same lengths give the same rows.

    >>> pack([3, 5, 2], capacity=5)
    [[1], [0, 2]]
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free places, row), sorted
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[number]
        assert 0 < length <= capacity, (number, length, capacity)
        at = bisect_left(room, (length, 0))
        if at == len(room):
            rows.append([])
            free, row = capacity, len(rows) - 1
        else:
            free, row = room.pop(at)
        rows[row].append(number)
        insort(room, (free - length, row))
    return rows
