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
from struct import pack_into
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from groundup.config import nearest
from groundup.device import physical_cores
from groundup.inference.decode.operations import FORMATS, IN_STEP, PIECES, PRIVATE_ROWS
from groundup.inference.decode.program import Program
from groundup.inference.decode.recurring import state_shapes
from groundup.inference.decode.refusal import Refusal, refusal
from groundup.model import Transformer

log = logging.getLogger(__name__)

MOST_ROWS = 192
"""Rows of a step; more are done in several steps. Enough for the arithmetic to outweigh the reading of weights."""
TILE = 12
SMALL_BYTES = 1 << 20
"""Weights of a model whose step one thread takes as fast as two, who would have to meet; others can use the core."""
ROWS, IS_APART, WANTED, SEARCHED = map(IN_STEP.index, ("rows", "is_apart", "wanted", "searched"))
Piece = tuple[list[int], list[int], list[int], list[int]]
"""Of the rows of a step: tokens, positions, rows of the page tables; and the numbers of those that are wanted."""


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
    store's pages in place. `threads` is torch's number of threads by default, and 1 for a small model. What a row gives
    depends neither on the other rows of the call nor on the number of threads, bit for bit; so an engine gives it
    prompts, too, and in its batch-invariant mode.
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
        most = 1 if self.program.weight_bytes < SMALL_BYTES else physical_cores()
        self.threads = threads or min(torch.get_num_threads(), most)
        team = importlib.import_module("groundup.inference.decode.team")
        self._team, self._board = team.Team(self.threads), team.new_board(self.threads)
        self._step = importlib.import_module("groundup.inference.decode.step").step
        if not self._step.signatures and not any(Path(self._step.stats.cache_path).glob("step.*.nbi")):
            log.warning("compiling the decode step for this processor, once; this takes some twenty seconds")
        self._tiles = self._tiles_of(importlib.import_module("groundup.inference.decode.tile"))
        self._rows = np.zeros((4, MOST_ROWS), np.int64)  # of a `Piece`
        self._found = np.zeros((MOST_ROWS, PIECES), np.int64)
        self._logits, self._logits_place = np.empty((0, model.config.vocab_size), np.float32), 0
        self._logits_bytes = 4 * model.config.vocab_size
        step = self._new_step()
        self._given, self._place, self._told = step.data, step.ctypes.data, (0, 0)

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
        pieces = self._pieces(spans)
        logits = torch.empty(sum(len(wanted) for *_, wanted in pieces), self.config.vocab_size)
        address = logits.data_ptr()
        for piece in pieces:
            self._walk(piece, address, 0)
            address += len(piece[3]) * self._logits_bytes
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def most_likely(self, spans: Sequence[Rows], vocab_size: int) -> list[int] | None:
        """The most likely of the first `vocab_size` tokens at each wanted place, the lowest among equals, and -1 where
        logits are NaN or infinite. None where only the logits tell, which a soft cap may make equal.

        ValueError for a position beyond the context.
        """
        if self.config.logit_softcap is not None:
            return None
        found = list[int]()
        for piece in self._pieces(spans):
            count = len(piece[3])
            if count > len(self._logits):
                self._logits = np.empty((count, self.config.vocab_size), np.float32)
                self._logits_place = self._logits.ctypes.data
            self._walk(piece, self._logits_place, vocab_size)
            found += self._found[:count, 0].tolist()
        return found

    def _pieces(self, spans: Sequence[Rows]) -> list[Piece]:
        """Rows of each step: their tokens, positions and page tables, and the places of those that are wanted."""
        tokens, positions, rows, wanted = list[int](), list[int](), list[int](), list[int]()
        for span in spans:
            end = span.start + len(span.tokens)
            if end > self.program.context:
                raise ValueError(f"decoder: {end} tokens do not fit {self.program.context} positions")
            tokens += span.tokens
            positions += range(span.start, end)
            rows += [span.slot] * len(span.tokens)
            wanted += range(len(tokens) - span.wanted, len(tokens))
        if 0 < len(tokens) <= MOST_ROWS:
            return [(tokens, positions, rows, wanted)]
        cuts = [slice(start, start + MOST_ROWS) for start in range(0, len(tokens), MOST_ROWS)]
        return [
            (tokens[cut], positions[cut], rows[cut], [i - cut.start for i in wanted if cut.start <= i < cut.stop])
            for cut in cuts
        ]

    def _walk(self, piece: Piece, logits: int, searched: int) -> None:
        """One step on up to MOST_ROWS rows, whose logits go to an address.

        What is written for it goes through memoryviews and `struct`: numpy and torch are in no cache after a step, and
        take ten times as long then.
        """
        tokens, _, rows, wanted = piece
        for number, numbers in enumerate(piece):
            pack_into(f"{len(numbers)}q", self._rows.data, 8 * MOST_ROWS * number, *numbers)
        step = self._given
        step[ROWS], step[IS_APART] = len(tokens), len(set(rows)) == len(rows)
        step[WANTED], step[SEARCHED] = len(wanted), len(wanted) if searched else 0
        if self._told != (logits, searched):
            self._told = (logits, searched)
            self.program.set_logits(logits, searched)
        self._team.run(self._work)

    def _work(self, thread: int) -> int:
        return self._step(thread, self._place)

    def _new_step(self) -> NDArray[np.int64]:
        """All that a step is told, but for what each has of its own."""
        program, tables = self.program, self.store.tables
        records = MOST_ROWS + TILE + self.threads * PRIVATE_ROWS + TILE
        self._area = torch.zeros(records * program.record_bytes, dtype=torch.uint8)
        self._numbers = torch.zeros(self.threads, program.work_size)
        rows = self._rows.ctypes.data
        given = {
            "threads": self.threads, "board": self._board.ctypes.data, "operations": program.operations.ctypes.data,
            "count": len(program.operations), "tiles": self._tiles.ctypes.data, "most_rows": MOST_ROWS,
            "tile_formats": len(self._tiles), "tile_sizes": self._tiles.shape[1], "tokens": rows,
            "positions": rows + 8 * MOST_ROWS, "table_rows": rows + 16 * MOST_ROWS, "gathered": rows + 24 * MOST_ROWS,
            "tables": tables.ctypes.data, "tables_rows": len(tables), "tables_width": tables.shape[1],
            "found": self._found.ctypes.data, "area": self._area.data_ptr(), "record_bytes": program.record_bytes,
            "values_bytes": program.values_bytes, "work": self._numbers.data_ptr(), "work_size": program.work_size,
        }  # fmt: skip
        return np.array([given.get(name, 0) for name in IN_STEP])

    def _tiles_of(self, module: Any) -> np.ndarray:
        """Addresses of the tiles of every format that the program has, (format, size)."""
        found = np.zeros((len(FORMATS), len(module.SIZES["fp32"])), np.int64)
        for kind, number in FORMATS.items():
            if number in self.program.operations["format"]:
                found[number] = module.tiles(kind)
        return found


def _make_states(model: Transformer, store: Store) -> None:
    """Room for what recurrent layers carry on, in float32 as the step computes it."""
    for layer in range(model.config.num_layers):
        shapes = [(len(store.tables), *shape) for shape in state_shapes(model.config.block(layer).mixer)]
        kept = store.states[layer]
        if [tuple(state.shape) for state in kept] != shapes or any(s.dtype != torch.float32 for s in kept):
            store.states[layer] = tuple(torch.zeros(shape) for shape in shapes)
