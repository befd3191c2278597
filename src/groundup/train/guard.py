"""The guard against bad steps: what counts as bad, and what is done about it. `diagnosis` says why it happened."""

import hashlib
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Verdict = Literal["skip", "rewind", "stop", "accept"]


@dataclass
class Guard:
    """A step whose loss or gradient is NaN or infinite, or whose loss jumps, is not applied anywhere.

    max_in_row: bad steps skipped one after another; the next goes back to the last checkpoint.
    sigma: a loss above mean + sigma * deviation of the last `window` losses is a jump (None: never). The
    deviation counts as at least 1 % of the mean, so that a flat history does not make it nervous.
    max_rewinds: times that the run may go back before it stops with an error.
    """

    max_in_row: int = 5
    sigma: float | None = 6.0
    window: int = 128
    max_rewinds: int = 3
    in_row: int = 0
    rewinds: int = 0
    recent: deque[float] = field(default_factory=deque)

    def threshold(self) -> float:
        """The largest loss that passes; infinite until `window` losses were seen."""
        if self.sigma is None or len(self.recent) < self.window:
            return math.inf
        mean = math.fsum(self.recent) / len(self.recent)
        variance = math.fsum((loss - mean) ** 2 for loss in self.recent) / len(self.recent)
        return mean + self.sigma * max(math.sqrt(variance), 0.01 * abs(mean))

    def accept(self, loss: float) -> None:
        self.in_row = 0
        self.recent.append(loss)
        while len(self.recent) > self.window:
            self.recent.popleft()

    def judge(self, *, finite: bool, weights_finite: bool, can_rewind: bool) -> Verdict:
        """What to do about one more bad step. Skipping cannot help where a weight itself is not finite."""
        self.in_row += 1
        if weights_finite and self.in_row <= self.max_in_row:
            return "skip"
        if can_rewind and self.rewinds < self.max_rewinds:
            self.rewinds += 1
            self.in_row = 0
            return "rewind"
        if finite:
            # A loss that stays high is the new level, not a spike.
            self.in_row = 0
            self.recent.clear()
            return "accept"
        return "stop"

    def why_stopped(self, checkpoint: object) -> str:
        if checkpoint is None:
            return f"{self.in_row} bad steps in a row, and no checkpoint to go back to"
        return f"went back to a checkpoint {self.rewinds} times already"

    def state(self) -> dict[str, Any]:
        return {"in_row": self.in_row, "recent": list(self.recent)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.in_row, self.recent = state["in_row"], deque(state["recent"])


def first_non_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor with a NaN or an infinity."""
    return next((name for name, tensor in tensors if not bool(torch.isfinite(tensor).all())), None)


def fingerprint(batches: list[dict[str, Tensor]]) -> str:
    """Shapes, ranges and a hash: enough to find the batch again in the data."""
    digest = hashlib.sha256()
    parts = []
    for name, tensor in ((name, t) for batch in batches for name, t in sorted(batch.items())):
        plain = tensor.detach().cpu().contiguous()
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
        low, high = (plain.min().item(), plain.max().item()) if plain.numel() else (0, 0)
        parts.append(f"{name} {tuple(tensor.shape)} in [{low:g}, {high:g}]")
    return f"{', '.join(parts)}, sha256 {digest.hexdigest()[:12]}"
