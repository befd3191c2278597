"""Runs of a sweep side by side: a process for each, as one small model does not keep several cores busy.

Workers hand back what they measured and write nothing, so they may be killed at any moment.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from typing import Any

import torch

from groundup.device import physical_cores
from groundup.scaling.sweep_search import Job

Train = Callable[[Job], dict[str, Any]]
_train: Train | None = None


@contextmanager
def workers(
    count: int, make: Callable[..., Train], *arguments: Any
) -> Iterator[Callable[[Sequence[Job]], Iterator[Any]]]:
    """A function that makes runs of jobs, in the order in which they end; `make(*arguments)` gives what trains one.

    With one worker all happens in this process. On any error, Ctrl-C among them, the workers are killed.
    """
    if count == 1:
        train = make(*arguments)
        yield lambda jobs: map(train, jobs)
        return
    context = multiprocessing.get_context("spawn")
    threads = max(1, physical_cores() // count)
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, context, _begin, (threads, make, *arguments))
    try:
        yield lambda jobs: _as_done({pool.submit(_run, job) for job in jobs})
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _as_done(left: set[Future[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    while left:
        done, left = wait(left, return_when=FIRST_COMPLETED)
        yield from map(_result, done)


def _result(future: Future[dict[str, Any]]) -> dict[str, Any]:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker died, most often because memory ran out; finished runs are kept: take fewer --workers, and go on "
            "with --resume"
        ) from error


def _begin(threads: int, make: Callable[..., Train], *arguments: Any) -> None:
    """In a worker: Ctrl-C is the parent's business, and nobody outlives it."""
    global _train
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _train = make(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


def _run(job: Job) -> dict[str, Any]:
    assert _train is not None
    return _train(job)
