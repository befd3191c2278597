"""The stopwatch and the profiler around steps that somebody else drives.

The driver asks before each step whether to go on. Steps come in turns: warm-up; timed without the profiler; timed with
it, marked and traced; timed without it again, so that a machine that changes its speed meanwhile shows; and last one
with a record of every allocation, which would slow the others down.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from groundup.device import synchronize
from groundup.files import read_json
from groundup.profiling.attribution import TraceEvent
from groundup.profiling.scopes import STEP

Marks = Callable[[], contextlib.AbstractContextManager[None]]


class Recorder:
    """`go_on()` before each step; then `plain` and `traced` are seconds per step, and `traces` has the traces.

    steady_bytes: of weights and optimizer states, which are there between steps; precision: that the steps had.
    """

    def __init__(self, device: torch.device, marks: Marks, steps: int, warmup: int) -> None:
        self.device, self.marks = device, marks
        self.turns = ["warmup"] * warmup + ["plain"] * steps + ["traced"] * (steps + 1) + ["plain"] * steps
        self.turns += ["memory"]
        self.seconds: dict[str, list[float]] = {"warmup": [], "plain": [], "traced": [], "memory": []}
        self.traces: dict[str, dict[str, Any]] = {}
        self.steady_bytes, self.precision = 0, "fp32"
        self._done = 0
        self._began = 0.0
        self._turn = contextlib.ExitStack()
        self._step = contextlib.ExitStack()

    @property
    def plain_seconds(self) -> float:
        """A step without the profiler: the mean of the faster half, as `attribution.quiet` is of those with it."""
        ordered = sorted(self.seconds["plain"])
        faster = ordered[: (len(ordered) + 1) // 2]
        return sum(faster) / len(faster)

    @property
    def spread(self) -> float:
        """The slowest step without the profiler over the fastest; near 1 on a machine that does nothing else."""
        return max(self.seconds["plain"]) / min(self.seconds["plain"])

    def events(self, turn: str) -> list[TraceEvent]:
        """The trace's events of the "traced" or the "memory" turn."""
        return self.traces[turn]["traceEvents"]

    def go_on(self) -> bool:
        """End the step before, if there was one, and begin the next; False when all are done."""
        synchronize(self.device)
        now = time.perf_counter()
        self._step.close()
        if self._done:
            self.seconds[self.turns[self._done - 1]].append(now - self._began)
        if self._done == len(self.turns):
            self.close()
            return False
        turn = self.turns[self._done]
        if self._done == 0 or turn != self.turns[self._done - 1]:
            self._turn.close()
            self._begin(turn)
        self._begin_step(turn)
        self._done += 1
        return True

    def close(self) -> None:
        """Stop whatever runs; also right in the middle of a step that failed."""
        self._step.close()
        self._turn.close()

    def _begin(self, turn: str) -> None:
        if turn in ("traced", "memory"):
            self._turn.enter_context(self.marks())
            profiler = profile(activities=activities(self.device), profile_memory=turn == "memory")
            self._turn.callback(self._keep, turn, profiler)
            self._turn.enter_context(profiler)

    def _begin_step(self, turn: str) -> None:
        self._began = time.perf_counter()
        first = not self.seconds[turn]
        if turn == "memory" or (turn == "traced" and not first):
            self._step.enter_context(record_function(STEP))

    def _keep(self, turn: str, profiler: profile) -> None:
        self.traces[turn] = trace_of(profiler)


def trace_of(profiler: profile) -> dict[str, Any]:
    """What the profiler recorded, as a Chrome trace."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return read_json(path)


def activities(device: torch.device) -> list[ProfilerActivity]:
    """What the profiler should watch."""
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
