"""The helper that every test on several ranks stands on."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from tests.distributed import RankFailed, run_ranks


def add(rank, size, x):
    total = x * (rank + 1)
    dist.all_reduce(total)
    return total, rank, size


def raise_on_one(rank, size):
    if rank == 1:
        raise KeyError("only here")
    dist.all_reduce(torch.ones(1))


def die_on_one(rank, size):
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1))


def exit_on_one(rank, size):
    if rank == 0:
        os._exit(3)
    dist.all_reduce(torch.ones(1))


def skip_a_collective(rank, size):
    if rank == 1:
        time.sleep(600)
    dist.all_reduce(torch.ones(1))


def report_pid(rank, size, folder):
    (folder / str(rank)).write_text(str(os.getpid()))
    if rank == 1:
        raise RuntimeError("after the pid was written")
    time.sleep(60)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_results_by_rank(size):
    x = torch.arange(3.0)
    total = x * size * (size + 1) / 2
    for rank, (result, its_rank, its_size) in enumerate(run_ranks(add, size, x)):
        assert torch.equal(result, total)
        assert (its_rank, its_size) == (rank, size)


def test_the_rank_that_raised_is_shown():
    with pytest.raises(RankFailed, match=r"rank 1 of 2 failed:(.|\n)*raise_on_one(.|\n)*only here"):
        run_ranks(raise_on_one, 2)


@pytest.mark.parametrize("worker, words", [(die_on_one, "SIGKILL"), (exit_on_one, "code 3")])
def test_a_death_is_named_and_not_its_consequence(worker, words):
    with pytest.raises(RankFailed, match=f"rank 0 of 2 failed:\n.*{words}"):
        run_ranks(worker, 2)


def test_a_rank_that_does_not_come_ends_the_call_in_time():
    start = time.monotonic()
    with pytest.raises(RankFailed, match="rank 0|did not finish"):
        run_ranks(skip_a_collective, 2, timeout=6.0)
    assert time.monotonic() - start < 300


def test_no_process_survives_a_failure(tmp_path):
    with pytest.raises(RankFailed, match="after the pid"):
        run_ranks(report_pid, 2, tmp_path)
    for file in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)


def test_only_module_level_functions():
    with pytest.raises(AssertionError, match="module level"):
        run_ranks(lambda rank, size: None, 2)
