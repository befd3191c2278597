"""Threads that share parts out and meet."""

import gc
import threading
import time

import numpy as np
import pytest

from groundup.inference.decode.team import (
    LINE,
    OWN,
    Team,
    arrive,
    call,
    compiled,
    is_called,
    meet,
    new_board,
    next_part,
)


@compiled
def rounds(board, thread, threads, count, parts, done):
    """In round r every part adds what the parts of the round before left: wrong unless all of them are there."""
    for r in range(count):
        part = thread
        while part < parts:
            before = 1 if r == 0 else done[r - 1].sum() // parts
            done[r, part] += before
            part = next_part(board, thread, threads)
        arrive(board, thread)
        meet(board, thread, threads)
    return 1


@compiled
def rounds_while_called(board, thread, threads, count, parts, done):
    """The same, into the next array of `done` each time that thread 0 begins anew; how many times."""
    if thread == 0:
        call(board)
    rounds(board, thread, threads, count, parts, done[board[OWN + LINE * thread] // count])
    answered = 1
    while thread > 0 and is_called(board, thread):
        rounds(board, thread, threads, count, parts, done[board[OWN + LINE * thread] // count])
        answered += 1
    return answered


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_part_is_done_once_and_after_the_round_before(threads):
    team, board = Team(threads), new_board(threads)
    for _ in range(3):  # the counters go on from step to step
        done = np.zeros((50, 7), np.int64)
        team.run(lambda thread, done=done: rounds(board, thread, threads, 50, 7, done))
        assert (done == 1).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_helpers_answer_calls_soon_after_another_without_sleeping_and_late_ones_too(threads):
    team, board = Team(threads), new_board(threads)
    done = np.zeros((60, 5, 7), np.int64)
    for number in range(len(done)):
        if number % 20 == 10:
            time.sleep(0.1)  # until the helpers sleep, if they can
        team.run(lambda thread: rounds_while_called(board, thread, threads, 5, 7, done))
        assert (done[: number + 1] == 1).all() and not done[number + 1 :].any()


def test_helpers_end_with_their_team():
    before = set(threading.enumerate())  # other tests' helpers may end meanwhile
    team = Team(3)
    helpers = set(threading.enumerate()) - before
    assert len(helpers) == 2
    del team
    gc.collect()
    for helper in helpers:
        helper.join(5)
    assert not any(helper.is_alive() for helper in helpers)
