"""The trial: its patience, its interrupt, its statistics, and the model that it leaves behind."""

import os
import signal
import weakref

import pytest
import torch

from groundup.build import trial
from groundup.build.pretrain import prepare
from groundup.build.trial import Trial, spread_of, try_out, typical
from tests.build.test_pretrain import MACHINE, PLAN


@pytest.fixture
def session():
    return prepare(PLAN, MACHINE, 1, compile=False)


@pytest.fixture
def times(monkeypatch):
    """Step times that the test decides, instead of real steps; the list of those that were taken."""
    given, taken = [], []

    def steps(session, made):
        for seconds in given:
            taken.append(seconds)
            yield seconds

    monkeypatch.setattr(trial, "_steps", steps)
    return given, taken


def test_a_slow_step_is_tried_once(session):
    runs = []
    session.model.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    assert try_out(session, PLAN, seed=0, patience=0.0).seconds > 0
    assert len(runs) == 1


def test_ctrl_c_during_the_trial_ends_the_build(session):
    session.model.blocks[0].register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        try_out(session, PLAN, seed=0)


def test_the_model_is_left_initialised_anew(session):
    fresh = {name: p.clone() for name, p in prepare(PLAN, MACHINE, 5, compile=False).model.state_dict().items()}
    measured = try_out(session, PLAN, seed=5)
    assert measured.peak_bytes > 50_000_000
    assert all(torch.equal(p, fresh[name]) for name, p in session.model.state_dict().items())


def test_steady_steps_are_few_and_their_median_counts(session, times):
    times[0].extend([9.0, 2.0, 1.0, 1.02, 1.01, 1.03, 1.0, 1.0])
    measured = try_out(session, PLAN, seed=0)
    assert times[1] == [9.0, 2.0, 1.0, 1.02, 1.01, 1.03]
    assert measured.seconds == pytest.approx(1.015)
    assert measured.first_step_seconds == 9.0
    assert not measured.disturbed


def test_a_disturbed_trial_takes_more_steps_and_says_so(session, times):
    times[0].extend([9.0, 2.0, 1.0, 5.0, 7.0, 1.1, 1.0, 1.2, 6.0, 1.1, 1.0, 8.0, 99.0])
    measured = try_out(session, PLAN, seed=0)
    assert 99.0 not in times[1]
    assert measured.seconds == 1.0
    assert measured.disturbed


def test_statistics_of_no_and_of_one_step():
    assert spread_of([]) == 1.0
    assert typical([3.0]) == 3.0
    assert not Trial(1.0, trial.STEADY, 1.0, 0.1, 0).disturbed


def test_scoring_is_tried_while_the_optimizer_is_in_memory(session, monkeypatch):
    made, alive = [], []
    make = trial.make_optimizer

    def remember(*arguments):
        optimizer = make(*arguments)
        made.append(weakref.ref(optimizer))
        return optimizer

    monkeypatch.setattr(trial, "make_optimizer", remember)
    monkeypatch.setattr(type(session), "score_ids", lambda self, ids: alive.append(made[0]() is not None))
    assert try_out(session, PLAN, seed=0).score_seconds >= 0
    assert alive == [True]
