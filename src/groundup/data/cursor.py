"""The place of a source in its endless stream of shuffled epochs: one integer, the same on every rank."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int64

from groundup.data.batch import Batch
from groundup.data.order import Order


class Cursor(Iterator[Batch]):
    """What every source of shuffled rows shares: how much it has given out, and going on from there.

    A source sets `order`, the rows of its epochs, and `_data`, a hash of what it draws from, and moves
    `_samples` on by `batch_size` with every batch.

    batch_size: rows of the *global* batch; rank r of W is given rows r, r + W, ... of it.
    """

    order: Order
    _data: str  # no public name: a checkpoint records a source's `fingerprint` where it has one

    def __init__(self, batch_size: int, context_length: int, seed: int, rank: int, world_size: int):
        if context_length < 1:
            raise ValueError(f"context_length: {context_length} (expected at least 1)")
        _check_ranks(batch_size, rank, world_size)
        self.batch_size, self.context_length, self.seed = batch_size, context_length, seed
        self.rank, self.world_size = rank, world_size
        self._samples = 0  # rows of the global batch given out so far

    @property
    def tokens_per_batch(self) -> int:
        """Columns to predict in one global batch, of whatever weight."""
        return self.batch_size * self.context_length

    @property
    def epoch(self) -> int:
        """Whole epochs given out."""
        return self._samples // self.order.num_items

    @property
    def epochs_seen(self) -> float:
        """Epochs given out, with the part of the current one."""
        return self._samples / self.order.num_items

    def state(self) -> dict[str, Any]:
        """Where the stream stands, as plain data: enough to go on, on any number of ranks."""
        return {
            "samples": self._samples,
            "seed": self.seed,
            "context_length": self.context_length,
            "data": self._data,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. ValueError if the data, the seed or the context differ."""
        _check_state(state, self.state())
        self._samples = state["samples"]

    def _own_samples(self, sample: int) -> Int64[np.ndarray, " rows"]:
        """This rank's rows of the global batch whose first row is number `sample` of the stream."""
        return np.arange(sample + self.rank, sample + self.batch_size, self.world_size)


def _check_ranks(batch_size: int, rank: int, world_size: int) -> None:
    """ValueError unless `world_size` ranks can share a global batch equally, and `rank` is one of them."""
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}: expected 0 <= rank < world_size")
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(
            f"batch_size {batch_size} (of all ranks together) cannot be shared by {world_size} ranks; "
            f"expected a multiple of {world_size}"
        )


def _check_state(state: dict[str, Any], own: dict[str, Any]) -> None:
    """ValueError unless `state` was saved from the same stream as `own`."""
    if set(state) != set(own) or not isinstance(state["samples"], int) or state["samples"] < 0:
        raise ValueError(f"not the state of this source: it has {sorted(state)}, expected {sorted(own)}")
    for name in own:
        if name != "samples" and state[name] != own[name]:
            raise ValueError(f"cannot resume: {name} was {state[name]!r} and is now {own[name]!r}")
