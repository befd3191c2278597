"""Which rank is slow: every K steps all ranks share how long they computed, and who is far above the median is named.

    seconds of work a step, means of K steps     rank 0  0.41    rank 1  0.40    rank 2  0.93    rank 3  0.42
                                                                                  2.2 times the median: named

The time of a whole step says nothing: in it all ranks wait for the slowest. So a rank counts what it does alone, from
the start of a step to its first collective; `work()` around that part does. One all-gather of a few numbers every K
steps is all that is sent.

A rank that is slow for one window only may have been disturbed; one that is slow in several has a fault. NVRx, NVIDIA's
resiliency extension, reports the same quantity relative to the median.
"""

import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from groundup.parallel.agreement import texts_of_ranks

THRESHOLD = 1.3


@dataclass(frozen=True)
class Slow:
    """A rank and its machine; seconds of work a step, and as a multiple of the median of all ranks. windows: in how
    many of the last ones in a row."""

    rank: int
    host: str
    seconds: float
    times: float
    windows: int

    def __str__(self) -> str:
        since = f", {self.windows} windows in a row" if self.windows > 1 else ""
        return f"rank {self.rank} on {self.host} is slow: {1e3 * self.seconds:.0f} ms of work a step, " \
               f"{self.times:.1f} times the median of all ranks{since}"  # fmt: skip


class Stragglers:
    """Times this rank's work and compares it with the others' every `every` steps.

        stragglers = Stragglers()
        for batch in batches:
            with stragglers.work():           # may be entered several times in a step
                loss(model, batch).backward()
            sum_gradients(model)              # here ranks wait for each other
            for slow in stragglers.step():    # a collective at every 20th call, on all ranks alike
                log(str(slow))

    threshold: what times the median is slow. Raises ValueError for one that is not above 1, and for no steps.
    """

    def __init__(
        self,
        every: int = 20,
        threshold: float = THRESHOLD,
        device: torch.device | str = "cpu",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if every < 1 or threshold <= 1:
            raise ValueError(f"stragglers: every={every}, threshold={threshold}; expected at least 1, and more than 1")
        self.every, self.threshold, self.device, self.group = every, threshold, torch.device(device), group
        self.hosts = texts_of_ranks(platform.node() or "unknown", self.device, group)
        self._seconds, self._steps = 0.0, 0
        self._windows = [0] * len(self.hosts)

    @contextmanager
    def work(self) -> Iterator[None]:
        """Count the time within it: what this rank does without waiting for another."""
        begun = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - begun

    def step(self) -> list[Slow]:
        """A step is done. At every `every`-th a collective, which returns the slow ranks, the slowest first."""
        self._steps += 1
        if self._steps < self.every:
            return []
        own = torch.tensor([self._seconds / self._steps], dtype=torch.float32, device=self.device)
        self._seconds, self._steps = 0.0, 0
        parts = [torch.empty_like(own) for _ in self.hosts]
        dist.all_gather(parts, own, group=self.group)
        return self._compare([float(part) for part in parts])

    def _compare(self, seconds: list[float]) -> list[Slow]:
        """Of two ranks the median is the mean, of which nobody has twice as much: there the faster one is compared."""
        usual = statistics.median_low(seconds)
        slow = [usual > 0 and each > self.threshold * usual for each in seconds]
        self._windows = [n + 1 if is_slow else 0 for n, is_slow in zip(self._windows, slow, strict=True)]
        found = [
            Slow(rank, self.hosts[rank], each, each / usual, self._windows[rank])
            for rank, each in enumerate(seconds) if slow[rank]
        ]  # fmt: skip
        return sorted(found, key=lambda each: -each.times)
