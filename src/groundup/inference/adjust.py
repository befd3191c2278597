"""What a request asks of its logits before a token is drawn: biases, penalties for repeating, and a constraint's mask.

    logits  + bias    ->  / or * repetition penalty  ->  - presence - frequency * count  ->  -inf where not allowed
                          tokens of prompt + answer      tokens of the answer

Work is proportional to the tokens of the requests that ask for something: the tokens that rows have are gathered,
changed and put back for the whole batch at once, and the vocabulary is never walked. The order of the first steps is
vLLM's; the mask comes last, so that nothing makes a forbidden token possible.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from groundup.inference.sampling import SamplingParams


class Mask(Protocol):
    """The part of a constraint that choosing a token needs."""

    def mask(self) -> Bool[Tensor, " vocab"]: ...


class Choosing(Protocol):
    """The part of a request that choosing a token needs."""

    prompt: list[int]
    tokens: list[int]
    params: SamplingParams

    @property
    def constraint(self) -> Mask | None: ...


def check_biases(params: SamplingParams, vocab_size: int) -> None:
    """ValueError for a `logit_bias` of a token that the vocabulary has not."""
    unknown = next((token for token, _ in params.biases if token >= vocab_size), None)
    if unknown is not None:
        raise ValueError(f"logit_bias: id {unknown} is not in the vocabulary (0 to {vocab_size - 1})")


@torch.no_grad()
def adjust_logits(logits: Float[Tensor, "batch vocab"], requests: Sequence[Choosing]) -> Float[Tensor, "batch vocab"]:
    """Change each row as its request asks, in place; a batch that asks for nothing is returned untouched.

    Log-probabilities are the model's own, so take them from a copy, or before. A mask shorter than the row forbids
    what it does not cover. Raises what a constraint raises that no token can go on.
    """
    assert len(requests) == len(logits), f"{len(logits)} rows of logits for {len(requests)} requests"
    _add_biases(logits, requests)
    _repetition(logits, requests)
    _presence_and_frequency(logits, requests)
    for row, request in zip(logits, requests, strict=True):
        if request.constraint is not None:
            allow_only(row, request.constraint.mask())
    return logits


def allow_only(row: Float[Tensor, " vocab"], mask: Bool[Tensor, " allowed"]) -> None:
    """-inf where the mask is False, and beyond its end."""
    row[len(mask) :] = -torch.inf
    row[: len(mask)].masked_fill_(~mask.to(row.device), -torch.inf)


def _add_biases(logits: Float[Tensor, "batch vocab"], requests: Sequence[Choosing]) -> None:
    entries = [(row, *pair) for row, request in enumerate(requests) for pair in request.params.biases]
    if entries:
        rows, tokens, biases = (torch.tensor(column, device=logits.device) for column in zip(*entries, strict=True))
        logits[rows, tokens] += biases.to(logits.dtype)


def _repetition(logits: Float[Tensor, "batch vocab"], requests: Sequence[Choosing]) -> None:
    rows = [row for row, request in enumerate(requests) if request.params.repetition_penalty != 1]
    if rows:
        places, row_of, _ = _occurrences(logits, requests, rows, lambda request: [*request.prompt, *request.tokens])
        penalty = _of_rows(logits, [request.params.repetition_penalty for request in requests])[row_of]
        values = logits.view(-1)[places]
        logits.view(-1)[places] = torch.where(values > 0, values / penalty, values * penalty)


def _presence_and_frequency(logits: Float[Tensor, "batch vocab"], requests: Sequence[Choosing]) -> None:
    rows = [row for row, r in enumerate(requests) if r.params.presence_penalty or r.params.frequency_penalty]
    if rows:
        places, row_of, counts = _occurrences(logits, requests, rows, lambda request: request.tokens)
        presence = _of_rows(logits, [request.params.presence_penalty for request in requests])[row_of]
        frequency = _of_rows(logits, [request.params.frequency_penalty for request in requests])[row_of]
        logits.view(-1)[places] -= presence + frequency * counts


def _occurrences(
    logits: Float[Tensor, "batch vocab"],
    requests: Sequence[Choosing],
    rows: list[int],
    tokens_of: Callable[[Choosing], list[int]],
) -> tuple[Int[Tensor, " places"], Int[Tensor, " places"], Int[Tensor, " places"]]:
    """Each token that one of the rows has, once: its place in the flat logits, its row, and how often it occurs."""
    width = logits.shape[1]
    flat = torch.cat([torch.tensor(tokens_of(requests[row]), dtype=torch.long) + row * width for row in rows])
    places, counts = (tensor.to(logits.device) for tensor in flat.unique(return_counts=True))
    return places, places // width, counts


def _of_rows(logits: Float[Tensor, "batch vocab"], values: list[float | int]) -> Float[Tensor, " batch"]:
    return torch.tensor(values, dtype=logits.dtype, device=logits.device)
