"""Batches for pretraining: windows of the token stream, shuffled anew in every epoch, resumable anywhere."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from groundup.data.batch import Batch, to_device
from groundup.data.order import Order, draw
from groundup.data.shards import ShardSet


class Loader:
    """An endless iterator of batches over a shard set.

    The stream of N tokens is closed to a circle and cut into N // context_length windows, beginning at an
    offset that is drawn for each epoch; windows share one token with the next, so in an epoch every token is
    predicted once, except the N mod context_length between the last window and the first.

    batch_size: rows of the *global* batch. Rank r of W is given rows r, r + W, ... of it, so the training
        data of a step does not depend on the number of ranks.
    document_masks: tell the model where documents end (`segments`), so that attention stays inside them.
    shorten: take a shorter context where the whole set is shorter than one window, instead of an error.
    device: where batches go; on CUDA through pinned memory and without waiting.
    prefetch: batches prepared ahead by a thread. The state is that of the batches given out, never of those
        prepared.

    With document masks, end_of_text *opens* the next document: `segments[t]` counts the end_of_text among
    tokens 0..t. It is still predicted from the last token of the document that it ends, and the first token
    of a document is predicted from end_of_text alone. That is how text is generated and scored from nothing,
    so it has to be learned. If end_of_text belonged to the document before, that prediction would have to be
    left out (weight 0), since it would be made from an unrelated text, and a model would never learn how
    texts begin. As it is, no prediction crosses from one document into another, all have weight 1, and
    there is no `mask`. `segments` is left out of batches in which no row has a boundary: plain causal
    attention is the same there, and faster.

    Raises ValueError when a file of the set changes during training.
    """

    def __init__(
        self,
        shards: ShardSet | str | Path,
        batch_size: int,
        context_length: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        document_masks: bool = True,
        *,
        shorten: bool = False,
        device: torch.device | str = "cpu",
        prefetch: int = 0,
    ):
        self.shards = shards if isinstance(shards, ShardSet) else ShardSet.open(shards)
        self.context_length = _fit(context_length, self.shards.num_tokens, shorten)
        check_ranks(batch_size, rank, world_size)
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.seed, self.document_masks, self.device = seed, document_masks, torch.device(device)
        self.order = Order(self.shards.num_tokens // self.context_length, seed)
        self._samples = 0  # rows of the global batch given out so far
        self._ahead: deque[Future[Batch]] = deque()
        self._prefetch = prefetch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader") if prefetch else None

    @property
    def windows_per_epoch(self) -> int:
        """Rows in one epoch."""
        return self.order.num_items

    @property
    def tokens_per_batch(self) -> int:
        """Predicted tokens in one global batch."""
        return self.batch_size * self.context_length

    @property
    def epoch(self) -> int:
        """Whole epochs given out."""
        return self._samples // self.order.num_items

    @property
    def epochs_seen(self) -> float:
        """Epochs given out, with the part of the current one."""
        return self._samples / self.order.num_items

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self.batch_at(self._samples) if self._thread is None else self._prefetched(self._thread)
        self._samples += self.batch_size
        return to_device(batch, self.device)

    def batch_at(self, sample: int) -> Batch:
        """This rank's part of the global batch whose first row is number `sample` of the stream."""
        self.shards.check_unchanged()
        samples = np.arange(sample + self.rank, sample + self.batch_size, self.world_size)
        tokens = torch.from_numpy(self.shards.gather(self._places(samples)))
        return self._with_segments(tokens) if self.document_masks else {"tokens": tokens}

    def state(self) -> dict[str, Any]:
        """Where the stream stands, as plain data: enough to go on, on any number of ranks."""
        return {
            "samples": self._samples,
            "seed": self.seed,
            "context_length": self.context_length,
            "data": self.shards.fingerprint,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. ValueError if the data, the seed or the context differ."""
        check_state(state, self.state())
        self._samples = state["samples"]
        self._ahead.clear()

    def _prefetched(self, thread: ThreadPoolExecutor) -> Batch:
        while len(self._ahead) <= self._prefetch:
            sample = self._samples + len(self._ahead) * self.batch_size
            self._ahead.append(thread.submit(self.batch_at, sample))
        try:
            return self._ahead.popleft().result()
        except BaseException:
            self._ahead.clear()  # what follows was prepared for a place that is not reached now
            raise

    def _places(self, samples: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, "rows columns"]:
        """Places in the token stream of every column of these rows."""
        num_tokens = self.shards.num_tokens
        epochs = samples // self.order.num_items
        offsets = {epoch: draw(self.seed, epoch, "offset") % num_tokens for epoch in set(epochs.tolist())}
        starts = self.order.items(samples) * self.context_length
        starts += np.array([offsets[epoch] for epoch in epochs.tolist()], dtype=np.int64)
        places = (starts % num_tokens)[:, None] + np.arange(self.context_length + 1)
        return np.where(places < num_tokens, places, places - num_tokens)

    def _with_segments(self, tokens: Int64[Tensor, "rows columns"]) -> Batch:
        boundaries = tokens == self.shards.end_of_text
        if not boundaries[:, 1:].any():
            return {"tokens": tokens}
        return {"tokens": tokens, "segments": boundaries.cumsum(dim=1)}


def _fit(context_length: int, num_tokens: int, shorten: bool) -> int:
    if context_length < 1:
        raise ValueError(f"context_length: {context_length} (expected at least 1)")
    if num_tokens > context_length:
        return context_length
    if num_tokens < 2:
        raise ValueError(f"the data has {num_tokens} token: nothing to predict")
    if not shorten:
        raise ValueError(
            f"context_length {context_length:,} needs at least {context_length + 1:,} tokens of data; "
            f"there are {num_tokens:,}, enough for a context_length of at most {num_tokens - 1:,}"
        )
    return num_tokens - 1


def check_ranks(batch_size: int, rank: int, world_size: int) -> None:
    """ValueError unless `world_size` ranks can share a global batch equally, and `rank` is one of them."""
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}: expected 0 <= rank < world_size")
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(
            f"batch_size {batch_size} (of all ranks together) cannot be shared by {world_size} ranks; "
            f"expected a multiple of {world_size}"
        )


def check_state(state: dict[str, Any], own: dict[str, Any]) -> None:
    """ValueError unless `state` was saved from the same stream as `own`."""
    if set(state) != set(own) or not isinstance(state["samples"], int) or state["samples"] < 0:
        raise ValueError(f"not the state of this source: it has {sorted(state)}, expected {sorted(own)}")
    for name in own:
        if name != "samples" and state[name] != own[name]:
            raise ValueError(f"cannot resume: {name} was {state[name]!r} and is now {own[name]!r}")
