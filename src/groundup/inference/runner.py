"""From scheduled spans to logits, through torch, for every architecture.

A span is what one sequence runs in this step: the newest token, a chunk of its prompt, or a few tokens to verify.
Spans of about one length go through the model together, so padding stays small; all decoding sequences are one batch.

In batch-invariant mode each sequence runs by itself, in tiles at fixed places:

    positions   0 ....... 15 | 16 ...... 31 | 32 .. 35 .       a tile is one page
    pass 3                                    x  x  x  x -  -  -      16 rows, whatever is known of them

Row i of a tile is position 16 t + i, and the keys are those of tiles 0 to t, empty ones included. So every shape that a
token meets, and its place in it, follow from its position alone, not from the batch, from how the prompt was cut, from
what was cached, or from whether the token was a prompt's or was computed again after a preemption. Equal inputs at
equal places of equal shapes give equal bits. A recurrence has to be entered where it was left, and experts multiply as
many rows as chose them, so models with either use tiles of one token: slower over a prompt, and as exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from groundup.inference.batch_cache import PageStore, SpanBatch, is_recurrent, most_in_place
from groundup.model import MoEConfig, Transformer

PADDED = 1.25
"""Spans share a batch while the longest has at most so many times the tokens of the shortest."""


@dataclass(frozen=True)
class Span:
    """Tokens of one sequence to run now, the first at position `start`.

    `pages` is its page table, with room for start + len(tokens); `slot` is the store's row with that table and
    the sequence's recurrent states. The last `wanted` tokens need logits.
    """

    tokens: list[int]
    start: int
    pages: list[int]
    slot: int
    wanted: int

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class Runner(Protocol):
    """Runs spans and gives the logits of their wanted tokens, span after span, in float32."""

    def run(self, spans: Sequence[Span]) -> Float[Tensor, "wanted vocab"]: ...


class TorchRunner:
    """The model's own forward pass over the page store.

    `in_place`: the few tokens of decoding and verifying attend to pages where they lie; by default on a GPU, where a
    kernel does that. Otherwise pages are gathered first. With `keeps_states`, `states` has by slot what the head read
    of each token of the newest span. New recurrent states are kept at the end: a run that raises may be repeated.
    """

    def __init__(self, model: Transformer, store: PageStore, in_place: bool | None = None) -> None:
        self.model, self.store = model, store
        self.keeps_states, self.states = False, dict[int, Float[Tensor, "seq d_model"]]()
        wanted = store.device.type == "cuda" if in_place is None else in_place
        self.most_in_place = most_in_place(model.config) if wanted and not store.gathers_only else 0

    @torch.no_grad()  # not inference_mode: a table that a layer keeps must stay usable for training
    def run(self, spans: Sequence[Span]) -> Float[Tensor, "wanted vocab"]:
        states: list[Tensor | None] = [None] * len(spans)
        batches = list[SpanBatch]()
        for group in grouped(spans):
            together = [spans[i] for i in group]
            hidden, batch = self._forward(together)
            batches.append(batch)
            for row, (i, span) in enumerate(zip(group, together, strict=True)):
                states[i] = hidden[row, len(span.tokens) - span.wanted : len(span.tokens)]
                if self.keeps_states:
                    self.states[span.slot] = hidden[row, : len(span.tokens)]
        wanted = [state for state in states if state is not None and len(state)]
        vocab_size, device = self.model.config.vocab_size, self.store.device
        logits = self.model.logits(torch.cat(wanted)) if wanted else torch.empty(0, vocab_size, device=device)
        for batch in batches:
            batch.commit()
        return logits

    def _forward(self, spans: list[Span]) -> tuple[Float[Tensor, "batch seq d_model"], SpanBatch]:
        tokens, positions = padded(spans, self.store.device)
        starts, ends = [span.start for span in spans], [span.end for span in spans]
        from_zero, is_padded = not any(starts), sum(ends) - sum(starts) < tokens.numel()
        rows = [span.slot for span in spans]
        in_place = not from_zero and tokens.shape[1] <= self.most_in_place
        batch = SpanBatch(self.store, rows, starts, ends, tokens, positions, from_zero, is_padded, in_place)
        # Rows of one length need no explicit positions, which lets attention take its plain causal path.
        plain = from_zero and not is_padded
        return self.model.hidden(tokens, None if plain else positions, batch.caches()), batch


class InvariantRunner:
    """The same, bit for bit whatever else runs: tile by tile at fixed places, see above."""

    def __init__(self, model: Transformer, store: PageStore) -> None:
        self.model, self.store = model, store
        blocks = [model.config.block(i) for i in range(model.config.num_layers)]
        has_experts = any(isinstance(block.ffn, MoEConfig) for block in blocks)
        self.tile = 1 if has_experts or is_recurrent(model.config) else store.page_size

    @torch.no_grad()
    def run(self, spans: Sequence[Span]) -> Float[Tensor, "wanted vocab"]:
        logits = [row for span in spans for row in self._run(span)]
        if not logits:
            return torch.empty(0, self.model.config.vocab_size, device=self.store.device)
        return torch.cat(logits)

    def _run(self, span: Span) -> list[Float[Tensor, "1 vocab"]]:
        logits = []
        for begin in range(span.start - span.start % self.tile, span.end, self.tile):
            places = range(max(begin, span.start), min(begin + self.tile, span.end))
            hidden = self._forward(span, begin, places)
            wanted = [place for place in places if place >= span.end - span.wanted]
            logits += [self.model.logits(hidden[:, place - begin]) for place in wanted]
        return logits

    def _forward(self, span: Span, begin: int, places: range) -> Float[Tensor, "1 tile d_model"]:
        tokens = torch.zeros(1, self.tile, dtype=torch.long)
        positions = torch.full((1, self.tile), -1)
        here = slice(places.start - begin, places.stop - begin)
        tokens[0, here] = torch.tensor(span.tokens[places.start - span.start : places.stop - span.start])
        positions[0, here] = torch.arange(places.start, places.stop)
        device, end, is_padded = self.store.device, begin + self.tile, len(places) < self.tile
        tokens, positions = tokens.to(device), positions.to(device)
        batch = SpanBatch(self.store, [span.slot], [begin], [end], tokens, positions, False, is_padded)
        hidden = self.model.hidden(batch.tokens, batch.positions, batch.caches())
        batch.commit()
        return hidden


def grouped(spans: Sequence[Span]) -> list[list[int]]:
    """Numbers of the spans that go through the model together: of like length, and all at a beginning or none."""
    order = sorted(range(len(spans)), key=lambda i: (spans[i].start == 0, len(spans[i].tokens)))
    groups: list[list[int]] = []
    for i in order:
        first = spans[groups[-1][0]] if groups else None
        alike = first is not None and (first.start == 0) == (spans[i].start == 0)
        if first is not None and alike and len(spans[i].tokens) <= PADDED * len(first.tokens):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def padded(spans: Sequence[Span], device: torch.device) -> tuple[Tensor, Tensor]:
    """(batch, seq) tokens and their positions, with zeros at position -1 after the shorter spans."""
    longest = max(len(span.tokens) for span in spans)
    tokens = [span.tokens + [0] * (longest - len(span.tokens)) for span in spans]
    starts = torch.tensor([span.start for span in spans])
    lengths = torch.tensor([len(span.tokens) for span in spans])
    offsets = torch.arange(longest)
    positions = (starts[:, None] + offsets).masked_fill(offsets >= lengths[:, None], -1)
    return torch.tensor(tokens).to(device), positions.to(device)
