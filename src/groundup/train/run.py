"""What a training run did."""

import math
import statistics
from dataclasses import dataclass, field
from typing import Any, Literal

Ending = Literal["steps", "clock", "interrupt", "data"]


@dataclass
class Run:
    """step: updates made. losses: one mean loss per step, from step 1, across resumes. seconds: time spent in
    training, across resumes. skipped: bad steps that were not applied. overflows: steps without an update, for the
    loss scaler to find its scale; they count as steps. stopped_by: the step count, the
    deadline, a signal or the caller's `stop`, or the end of a finite source.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    overflows: int = 0
    epochs: float | None = None
    stopped_by: Ending = "steps"
    step_seconds: list[float] = field(default_factory=list)
    peak_memory_bytes: int = 0
    micro_batches: int = 1

    def record(self, count: int, mfu_per_speed: float | None) -> dict[str, Any]:
        """What metrics.jsonl says after this step; loss and speed are means over the last `count` steps. An MFU
        above 1 says that the peak was measured too low; the loop then raises it."""
        timed = self.step_seconds[-count:]
        speed = self.tokens / self.step * len(timed) / sum(timed) if sum(timed) else 0.0
        return {
            "step": self.step,
            "loss": math.fsum(self.losses[-count:]) / count,
            "tokens": self.tokens,
            "tokens_per_second": speed,
            "mfu": None if mfu_per_speed is None else speed * mfu_per_speed,
            "seconds": self.seconds,
            "skipped": self.skipped,
        }

    def measured(self) -> dict[str, Any]:
        """The figures that a plan predicts, as they came out. Step time is the median of this process's steps
        after the first, which compiles and warms up; tokens per second follow from it."""
        steady = self.step_seconds[1:] or self.step_seconds
        step_seconds = statistics.median(steady) if steady else None
        per_step = self.tokens / self.step if self.step else 0.0
        return {
            "steps": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "step_seconds": step_seconds,
            "tokens_per_second": per_step / step_seconds if step_seconds else None,
            "peak_memory_bytes": self.peak_memory_bytes,
            "loss": statistics.fmean(self.losses[-20:]) if self.losses else None,
        }

    def against(self, predicted: dict[str, float]) -> list[dict[str, Any]]:
        """Rows (name, predicted, measured, error = measured / predicted - 1) for every predicted figure.

        Raises ValueError for a figure that `measured` does not have.
        """
        measured = self.measured()
        if unknown := predicted.keys() - measured.keys():
            raise ValueError(f"prediction of {sorted(unknown)}: a run measures {', '.join(measured)}")
        return [
            {
                "name": name,
                "predicted": value,
                "measured": measured[name],
                "error": measured[name] / value - 1 if value and measured[name] is not None else None,
            }
            for name, value in predicted.items()
        ]

    def state(self) -> dict[str, Any]:
        """Scalars for a checkpoint; `losses` go beside it as a tensor."""
        return {name: getattr(self, name) for name in ("step", "tokens", "seconds", "skipped", "overflows")}

    def load_state(self, state: dict[str, Any], losses: list[float]) -> None:
        self.step, self.tokens = state["step"], state["tokens"]
        self.seconds, self.skipped, self.losses = state["seconds"], state["skipped"], losses
        self.overflows = state.get("overflows", 0)
