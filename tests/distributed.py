"""Run a function on several gloo ranks under plain pytest.

    def worker(rank, size, x):          # at module level of a test file
        dist.all_reduce(x)
        return x

    assert all(torch.equal(y, 2 * x) for y in run_ranks(worker, 2, x))

Ranks are forked from a server process that has torch loaded, so that only the first call pays for its import.
"""

import importlib.util
import multiprocessing as mp
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

REPOSITORY = Path(__file__).resolve().parent.parent
GRACE_SECONDS = 0.5  # after a first failure: how long to listen for a better explanation


# What ranks import, torch's compiler too, which comes with the first call that a graph would step around.
PRELOADED = ["pytest", "torch._dynamo", "groundup.parallel.torch_engine", "groundup.train", "groundup.data"]


def process_server() -> Any:
    """The context of multiprocessing whose new processes have torch and the rooms below loaded, where there is one."""
    context = mp.get_context("forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(PRELOADED)
        with pytest.MonkeyPatch.context() as environment:
            environment.delenv("TRITON_INTERPRET", raising=False)  # read when the server imports Triton
            forkserver.ensure_running()
    return context


class RankFailed(AssertionError):
    """A rank raised, died or did not finish; the message holds its traceback."""


def run_ranks(function: Callable, world_size: int, *args: Any, timeout: float = 60.0) -> list[Any]:
    """function(rank, world_size, *args) on each rank of a new gloo group; what they return, by rank.

    The function is named by its file, so it must stand at module level. `timeout` (seconds) bounds the whole
    call; a collective gives up earlier, at half of it. Whatever happens, no process is left.
    """
    assert "." not in function.__qualname__, f"{function.__qualname__} must stand at module level"
    context = process_server()
    with tempfile.TemporaryDirectory() as folder:
        job = (sys.modules[function.__module__].__file__, function.__name__, args)
        ranks = [_Rank(context, rank, world_size, f"{folder}/store", job, timeout) for rank in range(world_size)]
        try:
            _collect(ranks, timeout)
        finally:
            for rank in ranks:
                rank.kill()
    return [rank.result for rank in ranks]


class _Rank:
    def __init__(self, context: Any, rank: int, size: int, store: str, job: tuple, timeout: float) -> None:
        self.number = rank
        self.result: Any = None
        self.error: str | None = None
        self.reported = False
        self.connection, theirs = context.Pipe(duplex=False)
        self.process = context.Process(
            target=_main, args=(theirs, rank, size, store, pickle.dumps(job), timeout / 2), daemon=True
        )
        self.process.start()
        theirs.close()

    def read(self) -> None:
        """Take this rank's report; a closed pipe without one is a death."""
        try:
            self.error, self.result = pickle.loads(self.connection.recv_bytes())
            self.reported = True
        except EOFError:
            self.process.join(5)
            self.error = _describe_death(self.process.exitcode)

    def kill(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.connection.close()

    @property
    def done(self) -> bool:
        return self.reported or self.error is not None


def _collect(ranks: list[_Rank], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while waiting := {rank.connection: rank for rank in ranks if not rank.done}:
        for connection in wait(list(waiting), max(0.0, deadline - time.monotonic())):
            waiting[connection].read()  # type: ignore[index]
        failed = any(rank.error for rank in ranks)
        if failed:
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if time.monotonic() >= deadline:
            break
    _raise_first_failure(ranks, timeout)


def _raise_first_failure(ranks: list[_Rank], timeout: float) -> None:
    failed = [rank for rank in ranks if rank.error]
    unfinished = [rank.number for rank in ranks if not rank.done]
    if failed:
        # The others' errors ("connection closed by peer") follow from a death or a bug, which explain more.
        worst = min(failed, key=lambda rank: (rank.reported, _is_consequence(rank.error or ""), rank.number))
        raise RankFailed(f"rank {worst.number} of {len(ranks)} failed:\n{worst.error}")
    if unfinished:
        raise RankFailed(f"ranks {unfinished} of {len(ranks)} did not finish within {timeout} s")


def _is_consequence(error: str) -> bool:
    return "Connection closed by peer" in error or "Connection reset by peer" in error or "DistNetwork" in error


def _describe_death(code: int | None) -> str:
    if code is not None and code < 0:
        return f"died of {signal.Signals(-code).name}"
    return f"exited with code {code} before it reported"


def _main(report: Connection, rank: int, size: int, store: str, job: bytes, timeout: float) -> None:
    """What a rank runs: join the group, call the function, report, leave without waiting for anyone."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
    try:
        function, args = _load(job)
        seconds = timedelta(seconds=timeout)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=seconds)
        torch.manual_seed(0)
        outcome = (None, function(rank, size, *args))
        dist.barrier()
    except BaseException:
        outcome = (traceback.format_exc(), None)
    report.send_bytes(pickle.dumps(outcome))
    report.close()
    os._exit(0)


def _load(job: bytes) -> tuple[Callable, tuple]:
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "src")]
    path, name, args = pickle.loads(job)
    spec = importlib.util.spec_from_file_location(f"rank_{Path(path).stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, name), args
