"""The most likely token, found by the step itself, against what is found from its logits."""

import math

import numpy as np
import pytest
import torch

from groundup.inference.decode.largest import NOT_A_NUMBER, choose_pieces, first_largest, search_piece
from groundup.inference.decode.operations import OPERATION, PIECES
from groundup.inference.decode.team import compiled
from groundup.inference.sampling import most_likely


@compiled
def searched(records, rows, found):
    for part in range(rows * PIECES):
        search_piece(records[0], part, found)
    choose_pieces(records[0], rows, found)


def by_pieces(logits: torch.Tensor, width: int) -> list[int]:
    """What the step finds of the first `width` logits of each row."""
    records = np.zeros(1, OPERATION)
    records["source"], records["source_width"], records["width"] = logits.data_ptr(), logits.shape[1], width
    found = np.full((len(logits), PIECES), -7, np.int64)
    searched(records, len(logits), found)
    return found[:, 0].tolist()


@pytest.mark.parametrize("vocab", [1, 2, 3, 5, 61, 513, 2049, 5000])
def test_it_is_the_first_of_the_largest(vocab):
    logits = torch.randn(40, vocab, generator=torch.Generator().manual_seed(vocab))
    logits[20:] = logits[20:].round()  # with many equals
    logits[38], logits[39] = 0.0, -0.0
    logits[39, vocab // 2 :] = 0.0  # equal to its negative
    for width in {vocab, max(1, vocab - 1), (vocab + 1) // 2}:
        assert by_pieces(logits, width) == most_likely(logits[:, :width].contiguous())


BROKEN = {"NaN": math.nan, "-NaN": -math.nan, "infinity": math.inf}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("place", [0, 700, 1299])
def test_a_row_with_what_is_no_number_has_none(name, place):
    logits = torch.randn(3, 1300, generator=torch.Generator().manual_seed(0))
    logits[1, place] = BROKEN[name]
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        most_likely(logits)
    assert by_pieces(logits, 1300)[1] == NOT_A_NUMBER
    assert by_pieces(logits, 1300)[::2] == most_likely(logits[::2])


def test_tokens_that_cannot_come_are_no_fault_unless_none_can():
    logits = torch.full((2, 600), -math.inf)
    logits[0, 599] = -5.0
    assert by_pieces(logits, 600) == [599, NOT_A_NUMBER]


def test_one_piece_may_be_all_there_is():
    assert first_largest(np.array([-math.inf, -math.inf], np.float32)) == 0
    assert first_largest(np.array([2.0, math.nan], np.float32)) == NOT_A_NUMBER
