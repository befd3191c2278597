"""Our side of the benchmark: the trainer does as many steps as it is told, and waits."""

import threading
from concurrent.futures import Future

import pytest
import torch

from groundup.bench.train_step_program import StoppedByTrainer, Turns

SHAPE = {"batch_size": 2, "context_length": 4, "vocab_size": 7}


def test_as_many_batches_as_asked_for_and_then_a_wait():
    turns, taken = Turns(SHAPE, torch.device("cpu")), []

    def consume():
        for batch in turns:
            taken.append(batch["tokens"])

    threading.Thread(target=consume, daemon=True).start()
    for units, total in ((3, 3), (1, 4), (2, 6)):
        assert turns.run(units)["peak_bytes"] >= 0
        assert len(taken) == total  # all of them are done when `run` returns, and none too many
    assert all(t.shape == (2, 5) and int(t.min()) >= 0 and int(t.max()) < 7 for t in taken)
    assert not torch.equal(taken[0], taken[1])


def test_every_program_gets_the_same_batches():
    first, second = (Turns(SHAPE, torch.device("cpu")) for _ in range(2))
    for turns in (first, second):
        turns._wanted.put(2)
    a, b = iter(first), iter(second)
    assert all(torch.equal(next(a)["tokens"], next(b)["tokens"]) for _ in range(2))


def test_a_trainer_that_ended_is_an_error_and_not_an_endless_wait():
    turns, ended = Turns(SHAPE, torch.device("cpu")), Future()
    ended.set_result("out of time")
    turns.training = ended
    with pytest.raises(StoppedByTrainer, match="ended early: out of time"):
        turns.run(1)


def test_what_ended_the_trainer_is_told():
    turns, failed = Turns(SHAPE, torch.device("cpu")), Future()
    failed.set_exception(MemoryError("step 1 does not fit"))
    turns.training = failed
    with pytest.raises(MemoryError, match="does not fit"):
        turns.run(1)
