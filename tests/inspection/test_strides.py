"""Tensors as storage, offset and strides: by hand, and every element found where the strides say."""

import itertools

import pytest
import torch

from groundup.inspection import layout_of, trace


def test_a_transpose_swaps_strides_and_moves_nothing():
    x = torch.arange(4.0).reshape(2, 2)
    before, after = layout_of(x), layout_of(x.mT)
    assert (before.strides, after.strides) == ((2, 1), (1, 2))
    assert before.storage == after.storage
    assert before.storage_bytes == after.storage_bytes == 16
    assert (before.is_contiguous, after.is_contiguous) == (True, False)


def test_every_element_is_where_offset_and_strides_say():
    flat = torch.arange(60)
    x = flat.reshape(3, 4, 5)[1:, ::2].transpose(0, 2)
    memory = layout_of(x)
    for index in itertools.product(*map(range, x.shape)):
        assert flat[memory.address(index)] == x[index]


def test_what_copies_and_what_does_not():
    steps = trace([4, 6], ["transpose=0,1", "unsqueeze=0", "reshape=24", "view=2,12", "select=0,1", "expand=3,12"])
    assert [step.copied for step in steps] == [False, False, False, True, False, False, False]
    memories = [step.memory for step in steps]
    assert [m.strides for m in memories if m] == [(6, 1), (1, 6), (6, 1, 6), (1,), (12, 1), (1,), (0, 1)]
    assert memories[5] is not None
    assert memories[5].offset == 12


def test_contiguous_copies_only_what_is_not():
    assert [s.copied for s in trace([2, 3], ["contiguous", "transpose=0,1", "contiguous"])] == [
        False,
        False,
        False,
        True,
    ]


def test_a_view_that_no_stride_can_express_is_refused_with_the_axes_that_are_in_the_way():
    *_, last = trace([4, 4], ["transpose=0,1", "view=16", "clone"])
    assert last.operation == "view=16"
    assert last.memory is None
    assert "axes 0 and 1 (stride 1, not 4 x 4)" in last.error
    *_, wrong = trace([4, 4], ["view=5,5"])
    assert "shape '[5, 5]' is invalid for input of size 16" in wrong.error
    *_, absent = trace([4], ["transpose=0,1"])
    assert "Dimension out of range" in absent.error


@pytest.mark.parametrize(
    ("shape", "words", "message"),
    [
        ([2, 2], ["transpos=0,1"], "'transpos=0,1' is unknown.*transpose"),
        ([2, 2], ["view=a"], "'a' are no whole numbers; write it as view=0,1"),
        ([2, 2], ["clone=1"], "clone takes no numbers"),
        ([-1, 2], [], "a size of -1"),
        ([4096, 4096], [], "at most 1,048,576 elements on 8 axes"),
        ([1] * 9, [], "at most 1,048,576 elements on 8 axes"),
    ],
)
def test_words_that_mean_nothing_are_named(shape, words, message):
    with pytest.raises(ValueError, match=message):
        trace(shape, words)


def test_operations_with_the_wrong_number_of_numbers_end_the_list():
    *_, last = trace([2, 2], ["transpose=0", "clone"])
    assert last.memory is None
    assert last.error


@pytest.mark.parametrize("words", [["repeat=2000,1"], ["expand=2000,1024,1024", "contiguous"]])
def test_results_that_need_much_memory_are_refused_before_they_are_made(words):
    with pytest.raises(ValueError, match=r"a result of 2,097,152,000 elements; at most 1,048,576"):
        trace([1024, 1024], words)
    assert trace([1024, 1024], ["expand=2000,1024,1024"])[1].memory.storage_bytes == 4 * 2**20
