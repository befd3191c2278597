"""Seconds per step and what they say of the deadline, on a clock that the test turns."""

import math
from types import SimpleNamespace

import pytest

from groundup.train import pace
from groundup.train.pace import WINDOW, Pace


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def steps(made, clock, *seconds, pause=0.0):
    """Steps of these lengths, each followed by a pause; what `step_done` said of them."""
    said = []
    for length in seconds:
        clock.seconds += length
        said.append(made.step_done())
        clock.seconds += pause
        made.pause_done()
    return said


def test_steps_are_timed_without_pauses_and_paced_with_them(clock):
    made = Pace(deadline=None)
    assert steps(made, clock, 9.0, 1.0, 3.0, pause=0.5) == [9.0, 1.0, 3.0]
    assert made.measure() == (-math.inf, 2.5)  # (1.5 + 3.5) / 2: the first step compiles


def test_the_pace_is_that_of_recent_steps(clock):
    made = Pace(deadline=None)
    steps(made, clock, 0.0, *[5.0] * 10, *[1.0] * WINDOW)
    assert made.measure()[1] == 1.0


def test_time_is_out_when_one_more_step_would_end_late(clock):
    made = Pace(deadline=103.0)
    made.agree(*made.measure())
    assert not made.out_of_time()  # no step yet: one is always tried
    steps(made, clock, 1.0, 1.0)
    made.agree(*made.measure())
    assert (made.seconds_left, made.seconds_per_step) == (1.0, 1.0) and not made.out_of_time()
    clock.seconds += 0.1
    made.agree(*made.measure())
    assert made.out_of_time()


def test_a_deadline_that_has_passed_leaves_no_step(clock):
    made = Pace(deadline=99.0)
    made.agree(*made.measure())
    assert made.seconds_left == -1.0 and made.out_of_time()


def test_what_all_ranks_agreed_on_counts(clock):
    made = Pace(deadline=1000.0)
    made.agree(-5.0, 6.0)
    assert made.out_of_time()


def test_progress_goes_by_what_comes_first(clock):
    made = Pace(deadline=110.0)
    made.agree(-10.0, 2.0)
    assert made.progress(step=8, steps=10, seconds=16.0) == (0.8, 4.0)
    assert made.progress(step=1, steps=10, seconds=10.0) == (0.5, 10.0)
    assert made.progress(step=1, steps=None, seconds=30.0) == (0.75, 10.0)
    assert made.progress(step=10, steps=10, seconds=0.0) == (1.0, 0.0)
    assert Pace(deadline=None).progress(step=1, steps=None, seconds=1.0) == (None, None)
