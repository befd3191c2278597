"""A watch on hangs: which rank did not come to which collective, and where everybody stands.

A collective ends when every rank has come to it. Where one never does, because it evaluates, waits for a file or was
stopped, the others stand still without a word until the process group gives up, and then know only that they waited.

    rank 0   step | all_reduce ........................... (stands here: calls everybody)   exits
    rank 1   step | evaluate ----------------------------- (is asked: puts its stack into the store)   exits

A thread of each rank looks whether the main thread still stands in the collective where it stood before. After
`timeout` seconds it calls through the store; each rank's thread answers with its stack, whatever the main thread does;
whoever called writes one report of all, and all end.
"""

import json
import os
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist

HUNG = 75
"""The exit code of a rank that was ended by its watchdog (EX_TEMPFAIL: another attempt may do better)."""

IDLE = 0.2
"""Of the time that passed: a process that computed more than this was not only waiting."""

_ROOMS = (str(Path(dist.__file__).parent), str(Path(__file__).parent))
_STACK_LINES = 30


@dataclass(frozen=True)
class Stand:
    """Where one rank's main thread is.

    collective: what it waits in, None where it does something else. seconds: for how long, as far as is known.
    """

    rank: int
    collective: str | None
    place: str
    seconds: float
    stack: str


class Watchdog:
    """Watches this rank in a thread of its own until `close`.

    store: shared by all ranks, and used by nobody else (it is asked about once a second from another thread).
    timeout: seconds in one collective that are a hang. The process group's own must be longer, or it speaks first.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float) -> None:
        self.store, self.rank, self.size, self.timeout = store, rank, size, timeout
        self.pause = min(1.0, max(0.05, timeout / 10))
        self.since, self.computed, self.mark = time.monotonic(), 0.0, (0, 0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self.pause):
            try:
                if self._stands_still() and self.store.add("hang/calls", 1) == 1:
                    self._call()
                elif self.store.check(["hang/called"]):
                    self._answer()
            except dist.DistStoreError as error:  # the store's host has gone, and with it everybody else
                print(f"rank {self.rank}: the launcher is gone: {error}", file=sys.stderr, flush=True)
                os._exit(HUNG)

    def _stands_still(self) -> bool:
        frame = _main_frame()
        mark = (id(frame), frame.f_lasti) if _collective(frame) else (0, 0)
        now, computed = time.monotonic(), time.process_time()
        if mark == (0, 0) or mark != self.mark or computed - self.computed > IDLE * max(now - self.since, self.pause):
            self.since, self.computed, self.mark = now, computed, mark
        return now - self.since > self.timeout

    def _stand(self) -> Stand:
        frame = _main_frame()
        waits = _collective(frame)
        return Stand(self.rank, waits, _place(frame), time.monotonic() - self.since if waits else 0.0, _stack(frame))

    def _call(self) -> None:
        """Ask everybody, write down what they say, and end."""
        self._put("hang/called", "")
        stands = {self.rank: self._stand()}
        give_up = time.monotonic() + max(3.0, 4 * self.pause)
        while len(stands) < self.size and time.monotonic() < give_up:
            for rank in set(range(self.size)) - stands.keys():
                if self.store.check([f"hang/stand/{rank}"]):
                    stands[rank] = Stand(**json.loads(self.store.get(f"hang/stand/{rank}")))
            time.sleep(0.05)
        text = report(stands, self.size)
        print(text, file=sys.stderr, flush=True)
        self._put("hang/report", text)
        time.sleep(0.2)  # the launcher, if there is one, sees the first rank that ends
        os._exit(HUNG)

    def _answer(self) -> None:
        self._put(f"hang/stand/{self.rank}", json.dumps(asdict(self._stand())))
        try:
            self.store.wait(["hang/report"], timedelta(seconds=10))
        except dist.DistError:
            print(
                f"rank {self.rank}: a rank reported a hang and did not finish its report", file=sys.stderr, flush=True
            )
        os._exit(HUNG)

    def _put(self, key: str, text: str) -> None:
        self.store.set(key, text)


def report(stands: dict[int, Stand], size: int) -> str:
    """What happened, in words: who waits in what and for how long, who did not come, and the stacks of the latter.

    >>> there = Stand(0, "all_reduce", "step.py:7 in step", 61.0, "...")
    >>> print(report({0: there}, 1).splitlines()[0])
    hang: rank 0 has waited in all_reduce for 61 s (step.py:7 in step)
    """
    waiting = [stand for stand in stands.values() if stand.collective]
    elsewhere = [stand for stand in stands.values() if not stand.collective]
    silent = [rank for rank in range(size) if rank not in stands]
    names = {stand.collective for stand in waiting}
    parts = [f"rank {s.rank} has waited in {s.collective} for {s.seconds:.0f} s ({s.place})" for s in waiting]
    parts += [f"rank {s.rank} has not come: it is at {s.place}" for s in elsewhere]
    parts += [f"rank {rank} does not answer: stopped, or its machine is gone" for rank in silent]
    if len(names) > 1:
        parts.append("they wait for different collectives: the ranks have taken different ways through the program")
    shown = elsewhere or waiting
    return "\n".join(["hang: " + "; ".join(parts), *(f"stack of rank {s.rank}:\n{s.stack}" for s in shown)])


def _main_frame() -> FrameType:
    ident = threading.main_thread().ident
    assert ident is not None
    return sys._current_frames()[ident]


def _collective(frame: FrameType) -> str | None:
    """The name of the collective that this innermost frame waits in, None where it is in none."""
    if not frame.f_code.co_filename.startswith(_ROOMS):
        return None
    at: FrameType | None = frame
    while at is not None and at.f_code.co_filename.startswith(_ROOMS):
        if at.f_code.co_filename.endswith("distributed_c10d.py") and not at.f_code.co_name.startswith("_"):
            return at.f_code.co_name
        at = at.f_back
    return frame.f_code.co_name


def _place(frame: FrameType) -> str:
    """Where in the program the frame is: the innermost file that is neither torch's nor this room's."""
    at = frame
    while at.f_code.co_filename.startswith(_ROOMS) and at.f_back is not None:
        at = at.f_back
    return f"{Path(at.f_code.co_filename).name}:{at.f_lineno} in {at.f_code.co_name}"


def _stack(frame: FrameType) -> str:
    lines = "".join(traceback.format_stack(frame)).splitlines()
    return "\n".join(lines[-_STACK_LINES:])
