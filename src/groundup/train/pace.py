"""How fast a run goes, and what that means for its deadline."""

import math
import time
from collections import deque

WINDOW = 32


class Pace:
    """Times steps and the pauses between them (hooks, checkpoints), on a clock that never jumps.

    The first step of a process is left out of the average: it compiles and warms up.
    """

    def __init__(self, deadline: float | None):
        self.deadline = deadline
        self.seconds_left = math.inf
        self.seconds_per_step = 0.0
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._mark = time.monotonic()
        self._steps = 0

    def step_done(self) -> float:
        """Seconds since the last pause ended, which is what the step took."""
        return time.monotonic() - self._mark

    def pause_done(self) -> None:
        now = time.monotonic()
        if self._steps:
            self._recent.append(now - self._mark)
        self._steps += 1
        self._mark = now

    def measure(self) -> tuple[float, float]:
        """(seconds past the deadline, seconds per step with its pauses): the largest of all ranks counts."""
        late = -math.inf if self.deadline is None else time.monotonic() - self.deadline
        return late, sum(self._recent) / len(self._recent) if self._recent else 0.0

    def agree(self, late: float, seconds_per_step: float) -> None:
        self.seconds_left, self.seconds_per_step = -late, seconds_per_step

    def out_of_time(self) -> bool:
        """Whether one more step would end after the deadline."""
        return self.seconds_left < max(self.seconds_per_step, 1e-9)

    def progress(self, step: int, steps: int | None, seconds: float) -> tuple[float | None, float | None]:
        """(fraction done, seconds left), by whichever of the steps and the deadline comes first."""
        left = self.seconds_left
        if steps is not None:
            left = min(left, (steps - step) * self.seconds_per_step)
        if not math.isfinite(left):
            return None, None
        return seconds / (seconds + left) if seconds + left > 0 else 1.0, left
