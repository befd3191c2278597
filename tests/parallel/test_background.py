"""A job on a thread of its own: its error, its end, and its place behind the others."""

import os
import sys
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


@pytest.mark.skipif(sys.platform != "linux", reason="only here threads have priorities of their own")
def test_a_job_gives_way_to_the_program_and_the_program_stays_as_it_was():
    background, before, found = Background("test"), os.getpriority(os.PRIO_PROCESS, 0), []
    background.start(lambda: found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
    assert background.wait() is None
    background.run(lambda: found.append(os.getpriority(os.PRIO_PROCESS, 0)))
    assert found == [min(19, before + 10), before] and os.getpriority(os.PRIO_PROCESS, 0) == before
