"""Where a part of a tensor lies in the whole one, and what two parts have in common, whatever the layouts were.

    whole (3, 6)         box [0, 3) x [2, 6)      run [3, 9) of that box's elements, row after row
    . . . . . .          . . x x x x              . . . . . x      three blocks, one after the other in memory:
    . . . . . .          . . x x x x              . . x x x x          the end of a row, whole rows, the start of one
    . . . . . .          . . x x x x              . . x . . .

A box is what cutting by rows, columns, heads or experts leaves; a run is what `fully_shard` leaves of that, since it
cuts a flat buffer wherever a shard ends. A run of a box of n axes is at most 2 n - 1 blocks, which are boxes again, so
parts of any two layouts are compared block by block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

Range = tuple[int, int]
Box = tuple[Range, ...]

MOST_NEIGHBOURS = 250_000
"""Pairs of blocks that are compared. Ranks that cut one or two axes need far fewer, however many they are."""


@dataclass(frozen=True)
class Region:
    """[start, end) along each axis of the whole tensor; and [start, end) of the box's elements in row-major order."""

    box: Box
    run: Range | None = None

    @classmethod
    def whole(cls, shape: Sequence[int]) -> "Region":
        """All of a tensor of this shape."""
        return cls(tuple((0, size) for size in shape))

    @cached_property
    def numel(self) -> int:
        return volume(self.box) if self.run is None else self.run[1] - self.run[0]

    @cached_property
    def blocks(self) -> list[tuple[Box, int]]:
        """(box, where its elements begin in this part's memory), in the order of memory.

        >>> Region(((0, 3), (2, 6)), (3, 9)).blocks
        [(((0, 1), (5, 6)), 0), (((1, 2), (2, 6)), 1), (((2, 3), (2, 3)), 5)]
        """
        if self.run is None:
            return [(self.box, 0)] if self.numel else []
        found, at = [], 0
        for inner in _split(sizes(self.box), *self.run):
            found.append((tuple((low + a, low + b) for (low, _), (a, b) in zip(self.box, inner, strict=True)), at))
            at += volume(inner)
        return found


def sizes(box: Box) -> tuple[int, ...]:
    return tuple(high - low for low, high in box)


def volume(box: Box) -> int:
    return prod(sizes(box))


def _split(shape: Sequence[int], start: int, end: int) -> list[Box]:
    """Elements [start, end) of a tensor as boxes: a partial row, whole rows, a partial row, each one's inside alike."""
    if start >= end:
        return []
    if not shape:
        return [()]
    row = prod(shape[1:])
    first, last = start // row, end // row
    if first == last:
        return [((first, first + 1), *rest) for rest in _split(shape[1:], start - first * row, end - first * row)]
    head = [((first, first + 1), *rest) for rest in _split(shape[1:], start - first * row, row)] if start % row else []
    rows: tuple[int, int] = (first + bool(head), last)
    body = [(rows, *((0, size) for size in shape[1:]))] if rows[0] < rows[1] else []
    return head + body + [((last, last + 1), *rest) for rest in _split(shape[1:], 0, end - last * row)]


def common(a: Box, b: Box) -> Box | None:
    """The box of what lies in both, or None."""
    both = tuple((max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(a, b, strict=True))
    return both if all(low < high for low, high in both) else None


def within(inner: Box, outer: Box) -> tuple[slice, ...]:
    """The index of `inner` in a tensor that holds `outer`."""
    return tuple(slice(a - low, b - low) for (a, b), (low, _) in zip(inner, outer, strict=True))


def check_cover(shape: Sequence[int], regions: Sequence[Region]) -> None:
    """Raise ValueError unless the regions have every element of a tensor of this shape once: what is wrong, and where.

    For P blocks cut along one axis this takes P log P steps, for a grid of them P^1.5.
    """
    for region in regions:
        _check_inside(shape, region)
    boxes = [box for region in regions for box, _ in region.blocks]
    have, need = sum(map(volume, boxes)), prod(shape)
    if have < need:
        raise ValueError(f"its parts have {have} of {need} elements: a part is missing")
    for a, b in _neighbours(boxes):
        if common(boxes[a], boxes[b]):
            raise ValueError(f"its parts overlap: {_text(boxes[a])} and {_text(boxes[b])}")
    if have > need:
        raise ValueError(f"its parts have {have} elements, the whole {need}")


def _check_inside(shape: Sequence[int], region: Region) -> None:
    if len(region.box) != len(shape) or not all(0 <= a <= b <= n for (a, b), n in zip(region.box, shape, strict=True)):
        raise ValueError(f"a part at {_text(region.box)} is not inside of shape {tuple(shape)}")
    if region.run is not None and not 0 <= region.run[0] <= region.run[1] <= volume(region.box):
        raise ValueError(f"a part is the elements {list(region.run)} of a box of {volume(region.box)}")


def _neighbours(boxes: Sequence[Box]) -> Iterator[Range]:
    """Pairs of boxes that meet along the axis with the most different starts: no others can overlap."""
    if len(boxes) < 2 or not boxes[0]:
        return iter([(0, 1)] if len(boxes) > 1 else [])
    bounds = np.array(boxes, dtype=np.int64)
    axis = max(range(bounds.shape[1]), key=lambda i: len(np.unique(bounds[:, i, 0])))
    order = np.argsort(bounds[:, axis, 0], kind="stable")
    ends = np.searchsorted(bounds[order, axis, 0], bounds[order, axis, 1], side="left")
    counts = ends - np.arange(len(boxes)) - 1
    if counts.sum() > MOST_NEIGHBOURS:
        raise ValueError(f"it is cut into {len(boxes)} parts, too much beside each other to be compared")
    return ((int(order[i]), int(order[j])) for i in np.flatnonzero(counts) for j in range(i + 1, ends[i]))


def _text(box: Box) -> str:
    return " x ".join(f"[{low}, {high})" for low, high in box) or "()"
