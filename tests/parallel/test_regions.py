"""Parts of tensors: held to what indexing a numbered tensor gives."""

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.parallel.regions import Region, check_cover, common, sizes, volume, within

SHAPES = st.lists(st.integers(1, 5), max_size=4).map(tuple)


def numbered(shape):
    return torch.arange(prod(shape)).view(shape)


def elements(region, shape):
    """The numbers of a region's elements in the order of its memory."""
    box = numbered(shape)[tuple(slice(a, b) for a, b in region.box)].reshape(-1)
    return box if region.run is None else box[slice(*region.run)]


def region_of(draw, shape):
    box = tuple(tuple(sorted((draw(st.integers(0, n)), draw(st.integers(0, n))))) for n in shape)
    run = None
    if draw(st.booleans()):
        run = tuple(sorted(draw(st.integers(0, volume(box))) for _ in range(2)))
    return Region(box, run)


def test_by_hand():
    region = Region(((0, 3), (2, 6)), (3, 9))
    assert region.numel == 6
    assert region.blocks == [(((0, 1), (5, 6)), 0), (((1, 2), (2, 6)), 1), (((2, 3), (2, 3)), 5)]
    assert Region.whole(()).blocks == [((), 0)] and Region.whole((0, 3)).blocks == []
    assert common(((0, 4), (1, 3)), ((2, 6), (0, 2))) == ((2, 4), (1, 2))
    assert common(((0, 4),), ((4, 6),)) is None and common((), ()) == ()


@settings(max_examples=100)
@given(st.data())
def test_blocks_hold_the_elements_in_the_order_of_memory(data):
    shape = data.draw(SHAPES)
    region = region_of(data.draw, shape)
    expected = elements(region, shape)
    assert region.numel == len(expected)
    found = torch.full((region.numel,), -1)
    for box, at in region.blocks:
        found[at : at + volume(box)] = numbered(shape)[tuple(slice(a, b) for a, b in box)].reshape(-1)
    assert torch.equal(found, expected)
    assert len(region.blocks) <= max(1, 2 * len(shape) - 1)


@settings(max_examples=100)
@given(st.data())
def test_what_two_regions_have_in_common(data):
    shape = data.draw(SHAPES)
    one, other = region_of(data.draw, shape), region_of(data.draw, shape)
    shared = [
        numbered(shape)[tuple(slice(a, b) for a, b in both)].reshape(-1)
        for box, _ in one.blocks
        for block, _ in other.blocks
        if (both := common(box, block)) is not None
        and numbered(shape)[tuple(slice(a, b) for a, b in box)][within(both, box)].shape == sizes(both)
    ]
    found = torch.cat(shared).tolist() if shared else []
    assert sorted(found) == sorted(set(elements(one, shape).tolist()) & set(elements(other, shape).tolist()))


def partition(draw, box, depth=3):
    """Regions that have each element of the box once."""
    if len(box) and depth and draw(st.integers(0, 3)):
        axis = draw(st.integers(0, len(box) - 1))
        low, high = box[axis]
        cut = draw(st.integers(low, high))
        halves = [(*box[:axis], part, *box[axis + 1 :]) for part in ((low, cut), (cut, high))]
        return [region for half in halves for region in partition(draw, half, depth - 1)]
    cut = draw(st.integers(0, volume(box)))
    return draw(st.sampled_from([[Region(box)], [Region(box, (0, cut)), Region(box, (cut, volume(box)))]]))


@settings(max_examples=100)
@given(st.data())
def test_a_partition_is_accepted_and_one_with_a_fault_is_not(data):
    shape = data.draw(SHAPES)
    parts = partition(data.draw, Region.whole(shape).box)
    check_cover(shape, parts)
    full = [part for part in parts if part.numel]
    which = data.draw(st.sampled_from(full))
    with pytest.raises(ValueError, match="a part is missing"):
        check_cover(shape, [part for part in parts if part is not which])
    with pytest.raises(ValueError, match="overlap|elements, the whole"):
        check_cover(shape, [*parts, which])
    if len(full) > 1:  # as many elements as there should be, but one part twice and another one missing
        other = next(part for part in full if part is not which)
        wrong = [other if part is which else part for part in parts]
        with pytest.raises(ValueError, match="missing|overlap|elements"):
            check_cover(shape, wrong)


@pytest.mark.parametrize(
    "region",
    [
        Region(((0, 5), (0, 3))),
        Region(((-1, 2), (0, 3))),
        Region(((3, 2), (0, 3))),
        Region(((0, 4),)),
        Region(((0, 4), (0, 3)), (0, 13)),
        Region(((0, 4), (0, 3)), (5, 4)),
        Region(((0, 4), (0, 3)), (-1, 4)),
    ],
)
def test_a_part_outside_of_its_tensor(region):
    with pytest.raises(ValueError, match="a part"):
        check_cover((4, 3), [region])


def test_many_ranks_and_hostile_many():
    grid = [Region(((i, i + 1), (j, j + 1))) for i in range(24) for j in range(24)]
    check_cover((24, 24), grid)
    runs = [Region.whole((1000, 1000)).box] * 500
    check_cover((1000, 1000), [Region(b, (i * 10**6 // 500, (i + 1) * 10**6 // 500)) for i, b in enumerate(runs)])
    with pytest.raises(ValueError, match="overlap|compared"):
        check_cover((100_000,), [Region(((0, 100_000),))] * 1_000)
