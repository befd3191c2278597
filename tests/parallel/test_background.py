"""A job on a thread of its own: its error, and its end."""

import threading

import pytest

from groundup.parallel.background import Background


def test_what_a_job_raises_is_told_once():
    background, go_on = Background("test"), threading.Event()

    def job():
        assert go_on.wait(60)
        raise KeyError("gone")

    background.start(job)
    assert background.busy
    with pytest.raises(AssertionError, match="test: a job is still running"):
        background.start(job)
    go_on.set()
    background.join()
    assert not background.busy
    assert isinstance(background.wait(), KeyError) and background.wait() is None
    background.run(lambda: 1 / 0)
    assert isinstance(background.wait(), ZeroDivisionError)
    background.start(lambda: None)
    assert background.wait() is None
