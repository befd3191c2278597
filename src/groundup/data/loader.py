"""Batches for pretraining: windows of the token stream, shuffled anew in every epoch, resumable anywhere."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from groundup.data.batch import Batch, to_device
from groundup.data.cursor import Cursor
from groundup.data.order import Order, draw
from groundup.data.shards import ShardSet


class Loader(Cursor):
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
        context_length = _fit(context_length, self.shards.num_tokens, shorten)
        super().__init__(batch_size, context_length, seed, rank, world_size)
        self.document_masks, self.device = document_masks, torch.device(device)
        self.order = Order(self.shards.num_tokens // self.context_length, seed)
        self._data = self.shards.fingerprint
        self._ahead: deque[Future[Batch]] = deque()
        self._prefetch = prefetch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader") if prefetch else None

    @property
    def windows_per_epoch(self) -> int:
        """Rows in one epoch."""
        return self.order.num_items

    def __next__(self) -> Batch:
        batch = self.batch_at(self._samples) if self._thread is None else self._prefetched(self._thread)
        self._samples += self.batch_size
        return to_device(batch, self.device)

    def batch_at(self, sample: int) -> Batch:
        """This rank's part of the global batch whose first row is number `sample` of the stream."""
        self.shards.check_unchanged()
        tokens = torch.from_numpy(self.shards.gather(self._places(self._own_samples(sample))))
        return self._with_segments(tokens) if self.document_masks else {"tokens": tokens}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
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
