"""A rank that sleeps is named, with its machine; ranks that are alike are not."""

import platform
import time

import pytest

from groundup.parallel.straggler import Stragglers
from tests.distributed import run_ranks


def one_sleeps(rank, size):
    found = []
    stragglers = Stragglers(every=3)
    for _ in range(9):
        with stragglers.work():
            time.sleep(0.12 if rank == 1 else 0.02)
        found.append([(slow.rank, slow.host, slow.times, slow.windows, str(slow)) for slow in stragglers.step()])
    return found, compared(stragglers)


def compared(stragglers):
    stragglers._windows = [0, 0]
    alike = stragglers._compare([0.100, 0.125])
    once = stragglers._compare([0.1, 0.2])
    again = stragglers._compare([0.1, 0.3])
    stragglers._compare([0.1, 0.1])
    return [[(slow.rank, round(slow.times, 6), slow.windows) for slow in each] for each in (alike, once, again)] + [
        list(stragglers._windows)
    ]


def test_a_rank_that_sleeps_is_named():
    (found, by_hand), (others, _) = run_ranks(one_sleeps, 2)
    assert found == others
    assert [len(each) for each in found] == [0, 0, 1, 0, 0, 1, 0, 0, 1]
    for window, (rank, host, times, windows, text) in enumerate((found[2][0], found[5][0], found[8][0]), 1):
        assert (rank, host, windows) == (1, platform.node(), window)
        assert times > 1.3 and f"rank 1 on {platform.node()} is slow" in text
    assert "3 windows in a row" in found[8][0][4]
    assert by_hand == [[], [(1, 2.0, 1)], [(1, 3.0, 2)], [0, 0]]


@pytest.mark.parametrize("wrong", [{"every": 0}, {"threshold": 1.0}])
def test_what_cannot_be_asked(wrong):
    with pytest.raises(ValueError, match="expected at least 1, and more than 1"):
        Stragglers(**wrong)
