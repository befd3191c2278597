"""The next token of each row, with what can go wrong kept to the row where it does."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from groundup.inference.adjust import adjust_logits
from groundup.inference.request import Request
from groundup.inference.sampling import TokenLogprob, broken_logits, sample, token_logprobs

log = logging.getLogger(__name__)


class Chosen(NamedTuple):
    """A sampled token, with its log-probabilities where the request asked for them."""

    token: int
    entry: TokenLogprob | None


def choose(
    logits: Float[Tensor, "batch vocab"], requests: Sequence[Request], one_by_one: bool = False
) -> list[Chosen | Exception]:
    """A token per row, or the exception that its request caused.

    A row's token is the same by itself up to the rounding of its softmax; `one_by_one` makes it the same exactly.
    """
    if len(requests) > 1 and not one_by_one:
        try:
            return list(_choose(logits, requests))
        except Exception as failure:  # of some row: a constraint may raise anything, before a token is drawn
            log.debug("choosing row by row: %s", failure)
    rows = logits.split(1) if len(requests) > 1 else [logits]
    return [_choose_one(row, request) for row, request in zip(rows, requests, strict=True)]


def takes_most_likely(request: Request) -> bool:
    """Whether nothing of the logits is asked for but where the largest is."""
    return request.params.temperature == 0 and not request.params.logprobs and not _asks(request)


def chosen(token: int) -> Chosen | Exception:
    """A token that was found without its logits, which for -1 were NaN or infinite."""
    return Chosen(token, None) if token >= 0 else broken_logits([0])


def _choose_one(logits: Float[Tensor, "1 vocab"], request: Request) -> Chosen | Exception:
    try:
        return _choose(logits, [request])[0]
    except Exception as failure:
        return failure


def _choose(logits: Float[Tensor, "batch vocab"], requests: Sequence[Request]) -> list[Chosen]:
    # A copy: log-probabilities are the model's own, and a row that fails is tried again.
    adjusted = adjust_logits(logits.clone(), requests) if any(map(_asks, requests)) else logits
    tokens = sample(adjusted, [r.params for r in requests], [r.generator for r in requests])
    count = max(r.params.logprobs for r in requests)
    entries = (
        token_logprobs(logits, torch.tensor(tokens, device=logits.device), count) if count else [None] * len(requests)
    )
    return [
        Chosen(token, _trimmed(entry, request.params.logprobs))
        for token, entry, request in zip(tokens, entries, requests, strict=True)
    ]


def _asks(request: Request) -> bool:
    """Whether the request wants its logits changed."""
    params = request.params
    penalties = params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
    return bool(request.constraint is not None or params.biases or penalties)


def _trimmed(entry: TokenLogprob | None, count: int) -> TokenLogprob | None:
    return entry._replace(top=entry.top[:count]) if entry and count else None
