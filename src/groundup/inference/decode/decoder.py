"""Decoding on a CPU as fast as its memory allows: the whole step in one compiled function over the page store.

    spans -> rows -> step, on all threads: embed, every layer, head -> logits

One token of each sequence reads every weight once, so decoding is bound by the bytes of the weights: they are kept in
8 or 4 bits where that is wanted (`weights`), and no time goes to anything else. Several tokens of one sequence, a
prompt or a draft to verify, are as many rows that share a page table. See `tile` for the arithmetic,
`step` for the step and `program` for what it covers.
"""

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from groundup.config import nearest
from groundup.device import physical_cores
from groundup.inference.decode.operations import FORMATS, PRIVATE_ROWS
from groundup.inference.decode.program import Program
from groundup.inference.decode.recurring import state_shapes
from groundup.inference.decode.refusal import Refusal, refusal
from groundup.model import Transformer

log = logging.getLogger(__name__)

MOST_ROWS = 192
"""Rows of a step; more are done in several steps. Enough for the arithmetic to outweigh the reading of weights."""
TILE = 12


class Store(Protocol):
    """What the step needs of a page store: streams of every layer, states of recurrent ones, and page tables by row.

    States that are not there yet, `()`, the decoder makes.
    """

    streams: list[list[Tensor]]
    states: list[tuple[Tensor, ...]]
    tables: np.ndarray
    page_size: int


class Rows(Protocol):
    """What the step needs of a span: tokens of the sequence with page table `slot`, the first at position `start`; the
    last `wanted` need logits."""

    @property
    def tokens(self) -> list[int]: ...

    @property
    def start(self) -> int: ...

    @property
    def slot(self) -> int: ...

    @property
    def wanted(self) -> int: ...


class CompiledDecoder:
    """Runs spans of tokens in a compiled step.

    The weights are packed when it is built: build it again after they have changed. It writes keys and values to the
    store's pages in place. `threads` is torch's number of threads by default. What a row gives depends neither on the
    other rows of the call nor on the number of threads, bit for bit; so an engine gives it prompts, too, and in its
    batch-invariant mode.
    """

    takes_prompts = True
    batch_invariant = True

    def __init__(self, model: Transformer, store: Store, weights: str = "bf16", threads: int | None = None) -> None:
        if weights not in FORMATS:
            raise ValueError(f"decoder: weights={weights!r} is unknown{nearest(weights, FORMATS)}")
        context = store.tables.shape[1] * store.page_size
        with torch.no_grad():
            _make_states(model, store)
            self.program = Program(model, store.streams, store.states, store.page_size, weights, MOST_ROWS, context)
        self.config, self.store = model.config, store
        self.threads = threads or min(torch.get_num_threads(), physical_cores())
        team = importlib.import_module("groundup.inference.decode.team")
        self._team, self._board = team.Team(self.threads), team.new_board(self.threads)
        self._step = importlib.import_module("groundup.inference.decode.step").step
        if not self._step.signatures and not any(Path(self._step.stats.cache_path).glob("step.*.nbi")):
            log.warning("compiling the decode step for this processor, once; this takes some twenty seconds")
        self._tiles = self._tiles_of(importlib.import_module("groundup.inference.decode.tile"))
        records = MOST_ROWS + TILE + self.threads * PRIVATE_ROWS + TILE
        self._area = torch.zeros(records * self.program.record_bytes, dtype=torch.uint8)
        self._tokens, self._positions, self._rows, self._gathered = np.zeros((4, MOST_ROWS), np.int64)
        self._counts = np.zeros(2, np.int64)
        self._logits_bytes = 4 * self.config.vocab_size

    @classmethod
    def build(
        cls, model: Transformer, store: Store, weights: str = "bf16", threads: int | None = None
    ) -> "CompiledDecoder | Refusal":
        """The decoder of a model over a store, or why there is none.

        ValueError for a format of weights that does not exist.
        """
        return refusal(model, store.streams, store.page_size) or cls(model, store, weights, threads)

    @property
    def weight_bytes(self) -> int:
        """That a step reads, whatever the number of rows."""
        return self.program.weight_bytes

    def run(self, spans: Sequence[Rows]) -> Float[Tensor, "wanted vocab"]:
        """Logits of the wanted tokens, span after span, in float32. ValueError for a position beyond the context."""
        tokens, positions, rows, wanted = list[int](), list[int](), list[int](), list[int]()
        for span in spans:
            end = span.start + len(span.tokens)
            if end > self.program.context:
                raise ValueError(f"decoder: {end} tokens do not fit {self.program.context} positions")
            tokens += span.tokens
            positions += range(span.start, end)
            rows += [span.slot] * len(span.tokens)
            wanted += range(len(tokens) - span.wanted, len(tokens))
        logits = torch.empty(len(wanted), self.config.vocab_size)
        done = 0
        for start in range(0, len(tokens), MOST_ROWS):
            piece = slice(start, start + MOST_ROWS)
            here = [place - start for place in wanted if start <= place < piece.stop]
            self._walk(
                tokens[piece], positions[piece], rows[piece], here, logits.data_ptr() + done * self._logits_bytes
            )
            done += len(here)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _walk(self, tokens: list[int], positions: list[int], rows: list[int], wanted: list[int], logits: int) -> None:
        """One step on up to MOST_ROWS rows, whose logits go to an address."""
        count = len(tokens)
        self._tokens[:count], self._positions[:count], self._rows[:count] = tokens, positions, rows
        self._gathered[: len(wanted)] = wanted
        self._counts[:] = count, len(wanted)
        self.program.set_logits(logits)
        self._team.run(self._work)

    def _tiles_of(self, module: Any) -> np.ndarray:
        """Addresses of the tiles of every format that the program has, (format, size)."""
        found = np.zeros((len(FORMATS), len(module.SIZES["fp32"])), np.int64)
        for kind, number in FORMATS.items():
            if number in self.program.operations["format"]:
                found[number] = module.tiles(kind)
        return found

    def _work(self, thread: int) -> int:
        program = self.program
        return self._step(
            thread, self.threads, self._board, program.operations, self._tiles, self._counts, self._tokens,
            self._positions, self._rows, self.store.tables, self._gathered, self._area.data_ptr(),
            program.record_bytes, program.values_bytes, program.work_size,
        )  # fmt: skip


def _make_states(model: Transformer, store: Store) -> None:
    """Room for what recurrent layers carry on, in float32 as the step computes it."""
    for layer in range(model.config.num_layers):
        shapes = [(len(store.tables), *shape) for shape in state_shapes(model.config.block(layer).mixer)]
        kept = store.states[layer]
        if [tuple(state.shape) for state in kept] != shapes or any(s.dtype != torch.float32 for s in kept):
            store.states[layer] = tuple(torch.zeros(shape) for shape in shapes)
