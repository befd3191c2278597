"""Which rows of a batch carry its loss, and what is odd about their tokens."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from groundup.data.batch import Batch
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.train.compiling import uncompiled
from groundup.train.objectives import Loss
from groundup.train.reinforce import token_nats

MOST_ROWS = 1024
MOST_NAMED = 3
ONE_TOKEN, REPEATED = 0.3, 0.5


@dataclass(frozen=True)
class RowLoss:
    """The mean loss of a row; `weight` is its part of the batch's mean."""

    batch: int
    row: int
    loss: float
    weight: float


@contextmanager
def as_in_scoring(model: nn.Module) -> Iterator[None]:
    """Without dropout and gradients; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), uncompiled(model):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def row_losses(
    model: nn.Module, objective: Callable[[nn.Module, Batch], Loss], group: Sequence[Batch], most: int = MOST_ROWS
) -> list[RowLoss]:
    """Each row by itself, of the first `most` rows of each batch."""
    found = []
    with as_in_scoring(model):
        for number, batch in enumerate(group):
            for row in range(min(rows_of(batch), most)):
                loss = objective(model, row_of(batch, row))
                weight = float(loss.weight)
                if weight:
                    found.append(RowLoss(number, row, float(loss.total) / weight, weight))
    return found


def rows_of(batch: Batch) -> int:
    return min((len(tensor) for tensor in batch.values()), default=0)


def row_of(batch: Batch, row: int) -> Batch:
    """A batch of this one row."""
    return {name: tensor[row : row + 1] for name, tensor in batch.items()}


def mean_loss(rows: Sequence[RowLoss]) -> float | None:
    """Of the batch that these rows are; None without any weight."""
    weight = math.fsum(row.weight for row in rows)
    return math.fsum(row.loss * row.weight for row in rows) / weight if weight else None


def guilty(rows: Sequence[RowLoss], threshold: float) -> list[RowLoss]:
    """The rows above the threshold, the worst first; the worst one where none is."""
    worst = sorted(rows, key=lambda row: row.loss, reverse=True)
    return [row for row in worst if not row.loss <= threshold] or worst[:1]


def broken_tensors(group: Sequence[Batch]) -> list[tuple[int, str, list[int]]]:
    """(batch, name, rows) of tensors in the data that are not finite themselves."""
    found = []
    for number, batch in enumerate(group):
        for name, tensor in batch.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                bad = (~torch.isfinite(tensor)).reshape(len(tensor), -1).any(1)
                found.append((number, name, bad.nonzero().flatten().tolist()))
    return found


def describe(row: RowLoss, model: nn.Module, batch: Batch) -> str:
    """Loss of the row, what its tokens are like, and the worst of them."""
    parts = [f"loss {row.loss:.3g}"]
    if "tokens" in batch and batch["tokens"].ndim == 2:
        parts.append(about_tokens(batch["tokens"][row.row].tolist()))
        parts += _worst_token(model, row_of(batch, row.row))
    return ", ".join(parts)


def about_tokens(ids: list[int]) -> str:
    """What makes a row unlike text.

    >>> about_tokens([17, 17, 17, 5]), about_tokens([1, 2, 3, 4])
    ('75 % one token (id 17), 67 % repeat the token before', '4 different tokens among 4')
    """
    if not ids:
        return "no tokens"
    (token, count), *_ = Counter(ids).most_common(1)
    repeated = sum(a == b for a, b in zip(ids, ids[1:], strict=False)) / max(1, len(ids) - 1)
    odd = [f"{100 * count / len(ids):.0f} % one token (id {token})"] if count > max(1, ONE_TOKEN * len(ids)) else []
    odd += [f"{100 * repeated:.0f} % repeat the token before"] if repeated >= REPEATED else []
    return ", ".join(odd) or f"{len(set(ids))} different tokens among {len(ids)}"


def _worst_token(model: nn.Module, batch: Batch) -> list[str]:
    """Of a model of the next token; others are scored in ways of their own."""
    causal = getattr(getattr(model, "config", None), "causal", False)
    if isinstance(model, EncoderDecoder) or not causal or not hasattr(model, "hidden"):
        return []
    subject: Any = model
    inputs = {name: batch[name][:, :-1] for name in ("positions", "segments") if name in batch}
    with as_in_scoring(model):
        nats: Tensor = token_nats(model, subject.hidden(batch["tokens"][:, :-1], **inputs), batch)[0]
    if not len(nats) or not (total := float(nats.sum())) > 0:
        return []
    at = int(nats.argmax())
    token, share = int(batch["tokens"][0, at + 1]), 100 * float(nats[at]) / total
    return [
        f"worst at position {at + 1}, token id {token}: {float(nats[at]):.3g} nats, {share:.0f} % of the row's loss"
    ]


def named_rows(places: Sequence[tuple[int, int]], batches: int) -> str:
    """The rows (batch, row) in words; the batch is named where a step has several.

    >>> named_rows([(0, 3)], 1), named_rows([(1, 0), (1, 2)], 2), named_rows([(0, i) for i in range(9)], 1)
    ('row 3', 'rows 0, 2 of batch 1', 'rows 0, 1, 2, 3, 4, 5, 6, 7 and 1 more')
    """
    texts = []
    for batch in sorted({place[0] for place in places}):
        rows = sorted(row for number, row in places if number == batch)
        text = ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        texts.append(f"row{'s' * (len(rows) > 1)} {text}" + (f" of batch {batch}" if batches > 1 else ""))
    return "; ".join(texts)
