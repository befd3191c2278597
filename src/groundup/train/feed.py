"""Batches for the trainer: taken from a source, handed back when a step was undone, resumable."""

import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch

from groundup.data.batch import Batch, to_device
from groundup.train.objectives import check_ids


class Feed:
    """Draws groups of batches from any iterable.

    A source with `state()` and `load_state()` (as `data.Loader`) is resumed by them; any other is assumed to
    repeat itself and is fast-forwarded. `waited` counts the seconds that the source took.

    vocabularies: the number of ids that a tensor may hold, by its name; on their way to an accelerator batches are
    held against it, as a wrong id ends a process there, and does not say where it was.
    """

    def __init__(self, source: Iterable[Batch], device: torch.device, vocabularies: dict[str, int] | None = None):
        self.source, self.device, self.vocabularies = source, device, vocabularies or {}
        self.taken, self.waited = 0, 0.0
        self._iterator = iter(source)
        self._returned: deque[list[Batch]] = deque()

    def take(self, count: int) -> list[Batch] | None:
        """The next `count` batches on the device; None when the source has ended."""
        if self._returned:
            return self._returned.popleft()
        group = []
        for _ in range(count):
            began = time.perf_counter()
            batch = next(self._iterator, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return None
            if self.device.type != "cpu":
                for name in self.vocabularies.keys() & batch.keys():
                    check_ids(batch[name], self.vocabularies[name])
            group.append(to_device(batch, self.device))
        self.taken += count
        return group

    def give_back(self, groups: list[list[Batch]]) -> None:
        """Groups whose steps were undone, in their order; `take` returns them first."""
        self._returned.extendleft(reversed(groups))

    @property
    def owes(self) -> bool:
        """Whether handed-back groups wait to be taken again; until then there is no state to save."""
        return bool(self._returned)

    @property
    def epochs(self) -> float | None:
        """How often the data has been seen, where the source knows."""
        return getattr(self.source, "epochs_seen", None)

    def state(self) -> dict[str, Any]:
        assert not self._returned, "a batch was handed back and not yet taken again"
        cursor = self.source.state() if hasattr(self.source, "state") else None  # type: ignore[attr-defined]
        return {"taken": self.taken, "cursor": cursor}

    def load_state(self, state: dict[str, Any]) -> None:
        self._returned.clear()
        self.taken = state["taken"]
        if state["cursor"] is not None and hasattr(self.source, "load_state"):
            self.source.load_state(state["cursor"])  # type: ignore[attr-defined]
            self._iterator = iter(self.source)
            return
        self._iterator = iter(self.source)
        for _ in range(self.taken):
            next(self._iterator, None)


def split(batch: Batch, parts: int) -> list[Batch]:
    """Cut a batch into `parts` micro-batches by rows, as evenly as they go; empty ones are left out."""
    pieces = {name: tensor.tensor_split(parts) for name, tensor in batch.items()}
    micro = [{name: piece[i] for name, piece in pieces.items()} for i in range(parts)]
    return [m for m in micro if all(len(tensor) for tensor in m.values())]


def count_tokens(batches: Iterable[Batch]) -> int:
    """Predictions that the batches hold: every column after the first of each row of token ids, sources left out."""
    total = 0
    for name, tensor in ((name, tensor) for batch in batches for name, tensor in batch.items()):
        is_ids = tensor.ndim == 2 and not tensor.is_floating_point() and tensor.dtype != torch.bool
        if is_ids and not name.endswith(("mask", "segments", "positions", "source")):
            total += tensor.shape[0] * (tensor.shape[1] - 1)
    return total
