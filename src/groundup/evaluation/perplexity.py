"""Bits per byte: how well a model predicts text, in a unit that no tokenizer can flatter."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Integer
from torch import Tensor

from groundup.model import EncoderDecoder, Transformer
from groundup.model.cache import Cache
from groundup.tokenizer import Tokenizer

# Logits alive at a time: 2^24 floats are 64 MiB, whatever the vocabulary.
LOGITS_AT_ONCE = 2**24

POLICY = (
    "Every document is scored alone: it starts after end_of_text as its only context, and the end_of_text "
    "that follows it counts as a token to predict. Windows of {context} tokens advance by {stride}, so each "
    "token is predicted exactly once, with at least {least} tokens of context where the document has them. "
    "Bits are summed over all tokens and divided by the UTF-8 bytes of the text."
)


@dataclass(frozen=True)
class Perplexity:
    """`bits_per_byte` = sum of -log2 p over `tokens` / `bytes`; `nats_per_token` is the mean loss.

    `tokens` counts one end_of_text per document, `bytes` the UTF-8 text only. `policy` says in words what
    was a document, and what was its context.
    """

    bits_per_byte: float
    nats_per_token: float
    tokens: int
    bytes: int
    documents: int
    policy: str

    @property
    def token_perplexity(self) -> float:
        """exp(nats_per_token): comparable between models of one tokenizer only."""
        return math.exp(self.nats_per_token)


@dataclass(frozen=True)
class Window:
    """Targets [start, end) of a document are in the model's view; those from `first` on are scored here."""

    document: int
    start: int
    first: int
    end: int


def bits_per_byte(
    model: Transformer,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    *,
    context_length: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
    caches: Sequence[Cache] | None = None,
) -> Perplexity:
    """Score held-out documents under the policy that the result states.

    `context_length` (default: the model's) is the length of a window in tokens, `stride` (default: half of
    it) how far the next one moves on: smaller strides give tokens more context and cost more. `batch_size`
    counts full windows; as many short documents as fill the same room share a batch. `progress(done, total)`
    counts tokens. `caches`, one per layer, stand between a layer and its keys and values, to score what a cache that
    rounds them costs; each batch is one pass that begins anew, so they must remember nothing.
    """
    num_bytes = sum(len(document.encode()) for document in documents)
    if not num_bytes:
        raise ValueError("bits per byte: the documents hold no text; expected at least one byte")
    end = tokenizer.end_of_text
    targets = [np.array([*ids, end], dtype=np.int64) for ids in tokenizer.encode_batch(documents)]
    _check_causal(model)
    context = model.config.context_length if context_length is None else context_length
    context, stride = _window_sizes(context, stride)
    scores = token_nats(
        model,
        targets,
        begin=end,
        context_length=context,
        stride=stride,
        batch_size=batch_size,
        progress=progress,
        caches=caches,
    )
    tokens, nats = sum(map(len, targets)), math.fsum(math.fsum(score) for score in scores)
    return Perplexity(
        bits_per_byte=nats / math.log(2) / num_bytes,
        nats_per_token=nats / tokens,
        tokens=tokens,
        bytes=num_bytes,
        documents=len(documents),
        policy=POLICY.format(context=context, stride=stride, least=context - stride + 1),
    )


def _check_causal(model: Transformer) -> None:
    if isinstance(model, EncoderDecoder):
        raise ValueError(
            "bits per byte: an EncoderDecoder needs a source for each text; its loss is sequence_to_sequence"
        )
    if not model.config.causal:
        raise ValueError(
            "bits per byte: a layer of the model has causal=False and sees the tokens to be predicted, so its losses "
            "are not those of a language model; give a causal one"
        )


@torch.no_grad()
def token_nats(
    model: Transformer,
    documents: Sequence[Integer[np.ndarray, "_"]],
    *,
    begin: int,
    context_length: int,
    stride: int | None = None,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
    caches: Sequence[Cache] | None = None,
) -> list[Float64[np.ndarray, "_"]]:
    """-ln p of every token of every document, each document after the one token `begin`.

    The model is put into eval mode, and back into the mode it was in.
    """
    _check_causal(model)
    context, stride = _window_sizes(context_length, stride)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; expected at least 1")
    _check_ids(documents, begin, model.config.vocab_size)
    scores = [np.full(len(document), np.nan) for document in documents]
    windows = [w for d, ids in enumerate(documents) for w in document_windows(d, len(ids), context, stride)]
    done, total = 0, sum(map(len, documents))
    was_training = model.training
    model.eval()
    try:
        for batch in _batches(windows, batch_size * context):
            for window, nats in zip(batch, _score(model, documents, batch, begin, caches), strict=True):
                scores[window.document][window.first : window.end] = nats
                done += len(nats)
            if progress is not None:
                progress(done, total)
    finally:
        model.train(was_training)
    return scores


def document_windows(document: int, length: int, context: int, stride: int) -> Iterator[Window]:
    """Cut `length` targets: the first window scores all that it sees, later ones their `stride` newest.

    These are lm-evaluation-harness's rolling windows with its context_len = context - stride + 1.

    >>> [(w.start, w.first, w.end) for w in document_windows(0, 10, context=4, stride=3)]
    [(0, 0, 4), (3, 4, 7), (6, 7, 10)]
    """
    first, end = 0, min(context, length)
    while first < length:
        yield Window(document, max(0, end - context), first, end)
        first, end = end, min(end + stride, length)


def _window_sizes(context: int, stride: int | None) -> tuple[int, int]:
    if context < 1:
        raise ValueError(f"context_length={context}; expected at least 1")
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise ValueError(f"stride={stride}; expected 1 to the context length, {context}")
    return context, stride


def _check_ids(documents: Sequence[Integer[np.ndarray, "_"]], begin: int, vocab_size: int) -> None:
    highest = max([begin, *(int(ids.max()) for ids in documents if len(ids))])
    if highest >= vocab_size:
        raise ValueError(
            f"token id {highest} is outside the model's vocabulary 0..{vocab_size - 1}; "
            "was the model trained with another tokenizer?"
        )


def _batches(windows: list[Window], room: int) -> Iterator[list[Window]]:
    """Windows of like length together, longest first, as many as fit in `room` tokens with their padding."""
    ordered = sorted(windows, key=lambda w: w.start - w.end)
    at = 0
    while at < len(ordered):
        rows = max(1, room // (ordered[at].end - ordered[at].start))
        yield ordered[at : at + rows]
        at += rows


def _score(
    model: Transformer,
    documents: Sequence[Integer[np.ndarray, "_"]],
    batch: list[Window],
    begin: int,
    caches: Sequence[Cache] | None,
) -> list[Float64[np.ndarray, "_"]]:
    """-ln p of each window's scored targets. Padding stands on the right, where no causal layer sees it."""
    longest = max(w.end - w.start for w in batch)
    rows = np.full((len(batch), longest + 1), begin, dtype=np.int64)
    scored = np.zeros((len(batch), longest), dtype=bool)
    for row, mask, w in zip(rows, scored, batch, strict=True):
        ids = documents[w.document]
        row[: w.end - w.start + 1] = np.append(begin if w.start == 0 else ids[w.start - 1], ids[w.start : w.end])
        mask[w.first - w.start : w.end - w.start] = True
    tokens = torch.from_numpy(rows).to(model.device)
    chosen = torch.from_numpy(scored).to(model.device)
    hidden = model.hidden(tokens[:, :-1], caches=caches)[chosen]
    nats = _negative_log_probs(model, hidden, tokens[:, 1:][chosen])
    return np.split(nats, np.cumsum(scored.sum(axis=1))[:-1])


def _negative_log_probs(model: Transformer, hidden: Tensor, targets: Tensor) -> Float64[np.ndarray, "_"]:
    """-ln p in float64, through logits of at most LOGITS_AT_ONCE numbers at a time."""
    rows = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    nats = []
    for h, target in zip(hidden.split(rows), targets.split(rows), strict=True):
        logits = model.logits(h)
        nats.append(logits.logsumexp(dim=-1) - logits.gather(1, target[:, None])[:, 0])
    return torch.cat(nats).cpu().double().numpy()
