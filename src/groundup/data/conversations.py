"""Batches for fine-tuning: whole examples packed into rows, with the loss on the answers only."""

import hashlib
import logging
from collections.abc import Sequence

import numpy as np
import torch

from groundup.data.batch import Batch, to_device
from groundup.data.cursor import Cursor
from groundup.data.order import Order
from groundup.data.packing import pack

log = logging.getLogger("groundup.data")

Example = tuple[Sequence[int], Sequence[int | float]]


class Conversations(Cursor):
    """An endless iterator of batches of packed examples.

    examples: pairs (ids, mask), as `tokenizer.chat.render` gives them; mask[i] weighs predicting ids[i].
    batch_size: rows of the *global* batch; rank r of W is given rows r, r + W, ... of it.
    pad_id: fills the ends of rows. Padding is a segment of its own with weight 0, so its id does not matter.
    vocab_size: when given, ids are checked against it.

    Rows are packed once (see `packing`); every epoch gives them in a new order. Each example is a segment
    with positions from 0, so what else is in its row does not touch it. The weight of its first token is 0:
    nothing comes before it to predict it from.

    An example longer than a row loses its end, which is said once with the count (`.truncated`). An example
    without a weight (an empty answer, or an answer that was cut off) stays and adds exactly 0 to the loss and
    to its weight (`.without_loss` counts them); only a set in which no example has a weight is an error.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        context_length: int,
        pad_id: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        *,
        vocab_size: int | None = None,
        device: torch.device | str = "cpu",
    ):
        super().__init__(batch_size, context_length, seed, rank, world_size)
        self.device, width = torch.device(device), context_length + 1
        checked = [_checked(number, example, vocab_size) for number, example in enumerate(examples)]
        self.truncated = sum(len(ids) > width for ids, _ in checked)
        cut = [(ids[:width], mask[:width]) for ids, mask in checked]
        self.without_loss = sum(not mask.any() for _, mask in cut)
        if self.without_loss == len(cut):
            raise ValueError(f"none of {len(cut)} examples has a token to learn from within {width} tokens")
        if self.truncated:
            message = "%d of %d examples are longer than %d tokens and lose their end"
            log.warning(message, self.truncated, len(cut), width)
        self.rows = _fill_rows(cut, width, pad_id)
        self.order = Order(len(self.rows["tokens"]), seed)
        #: The share of the rows that is padding.
        self.padding = 1 - sum(len(ids) for ids, _ in cut) / self.rows["tokens"].size
        self._data = _fingerprint(self.rows)

    @property
    def rows_per_epoch(self) -> int:
        """Rows in one epoch."""
        return self.order.num_items

    def __next__(self) -> Batch:
        rows = self.order.items(self._own_samples(self._samples))
        self._samples += self.batch_size
        batch = {name: torch.from_numpy(column[rows]) for name, column in self.rows.items()}
        return to_device({n: t if n == "mask" else t.long() for n, t in batch.items()}, self.device)


def _checked(number: int, example: Example, vocab_size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """One example as arrays. Raises ValueError with its number for what cannot be learned from."""
    ids, mask = np.asarray(example[0]), np.asarray(example[1], dtype=np.float32)
    if ids.ndim != 1 or ids.shape != mask.shape or not len(ids):
        raise ValueError(f"example {number}: {ids.shape} ids and {mask.shape} weights; expected two equal lists")
    last = (vocab_size or 2**31) - 1
    if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() > last:
        raise ValueError(f"example {number}: ids from {ids.min()} to {ids.max()}, outside 0..{last}")
    if not np.isfinite(mask).all() or mask.min() < 0:
        raise ValueError(f"example {number}: a weight is negative or not a number")
    mask[0] = 0
    return ids.astype(np.int32), mask


def _fill_rows(examples: list[tuple[np.ndarray, np.ndarray]], width: int, pad_id: int) -> dict[str, np.ndarray]:
    """All rows of an epoch, each array `(rows, width)`. Ids are kept in 32 bits: half of the memory."""
    rows = pack([len(ids) for ids, _ in examples], width)
    shape = (len(rows), width)
    tokens, mask = np.full(shape, pad_id, np.int32), np.zeros(shape, np.float32)
    segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, members in enumerate(rows):
        at = 0
        for segment, number in enumerate(members):
            ids, weights = examples[number]
            place = (row, slice(at, at + len(ids)))
            tokens[place], mask[place], segments[place] = ids, weights, segment
            positions[place] = np.arange(len(ids))
            at += len(ids)
        segments[row, at:] = len(members)
        positions[row, at:] = np.arange(width - at)
    return {"tokens": tokens, "mask": mask, "segments": segments, "positions": positions}


def _fingerprint(rows: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(rows):
        digest.update(np.ascontiguousarray(rows[name]).tobytes())
    return digest.hexdigest()
