"""The Python side of encoding: contexts for as many threads as ask, room that grows, texts in and arrays out."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from groundup.tokenizer.fast import encode_context as at
from groundup.tokenizer.fast import objects
from groundup.tokenizer.fast.context import (
    HAS_ZERO,
    NEEDS_CACHE,
    NEEDS_OUTPUT,
    NEEDS_SCRATCH,
    NEEDS_STAGE,
    PLACES,
    POSITION,
    WORDS,
)
from groundup.tokenizer.fast.front import Context
from groundup.tokenizer.fast.vocabulary_tables import Tables

_QUICK_BITS = 15
_FIRST_LINES, _MOST_LINES = 1 << 14, 1 << 19  # 1 MB to 32 MB
_FIRST_LONGS, _MOST_LONGS = 1 << 12, 1 << 17
_FIRST_LONG_TEXT, _MOST_LONG_TEXT = 1 << 18, 1 << 23
_FIRST_SPILL, _MOST_SPILL = 1 << 16, 1 << 22
_FIRST_SCRATCH = at.SCRATCH_PER_BYTE * 1024


class EncodeContext(Context):
    """A context with the tables of what was encoded before. They are bounded: full, they forget everything."""

    def __init__(self, pattern: str, tables: Tables, wide: bool) -> None:
        super().__init__(pattern, at.ENCODE_FIELDS)
        self.fields[at.WIDE] = wide
        self.output_type = np.uint32 if wide else np.uint16
        for field, array in (
            (at.BYTE_IDS, tables.byte_ids),
            (at.BYTE_PAIRS, tables.byte_pairs),
            (at.PAIRS, tables.pairs),
            (at.RANK_IDS, tables.rank_ids),
            (at.TOKEN_TABLE, tables.token_table),
            (at.OFFSETS, tables.offsets),
            (at.TOKEN_TEXT, tables.token_text),
        ):
            self.point(field, array)
        self.fields[at.PAIRS_SHIFT] = tables.pairs_shift
        self.fields[at.NUM_TOKENS] = self.fields[at.TOKEN_TABLE_SIZE] = tables.token_table.size
        self.point(at.VALUES, np.zeros(at.BATCH + 8, np.uint64))
        self.point(at.MISSES, np.zeros(at.BATCH + 8, np.int32))
        self.point(at.PROBES, np.zeros(4 * at.GROUP, np.uint64))
        self.fields[at.QUICK_SHIFT] = 64 - _QUICK_BITS
        self.make_scratch(_FIRST_SCRATCH)
        self.make_cache(_FIRST_LINES, _FIRST_LONGS, _FIRST_LONG_TEXT, _FIRST_SPILL)
        self.make_output(1 << 12)

    def make_scratch(self, size: int) -> None:
        self.point(at.SCRATCH, np.empty(size // 8 + 1, np.uint64))
        self.fields[at.SCRATCH_SIZE] = size

    def make_cache(self, lines: int, longs: int, long_text: int, spill: int) -> None:
        """Empty tables of these sizes."""
        self.point(at.QUICK, _aligned_zeros((2 << _QUICK_BITS) + 2))
        self.point(at.LINES, _aligned_zeros(8 * lines))
        self.point(at.LONGS, np.zeros(4 * longs, np.uint64))
        self.point(at.LONG_TEXT, np.empty(long_text, np.uint8))
        self.point(at.SPILL, np.empty(spill, np.uint32))
        self.fields[at.NUM_LINES], self.fields[at.NUM_LONGS] = lines, longs
        self.fields[at.LONG_TEXT_SIZE], self.fields[at.SPILL_SIZE] = long_text, spill
        self.fields[[at.LINES_USED, at.LONGS_USED, at.LONG_TEXT_USED, at.SPILL_USED]] = 0

    def make_output(self, size: int) -> None:
        """Room for `size` ids; those already written are kept."""
        count = int(self.fields[at.OUTPUT_COUNT])
        output = np.empty(size, self.output_type)
        if count:
            output[:count] = self.kept(at.OUTPUT)[:count]
        self.point(at.OUTPUT, output)
        self.fields[at.OUTPUT_SIZE] = size

    def grow(self, status: int) -> None:
        """Make room for what a kernel lacked."""
        if status == NEEDS_STAGE:
            self.grow_stage()
        elif status == NEEDS_OUTPUT:
            wanted = self._batch_bytes() + int(self.fields[at.OUTPUT_COUNT])
            self.make_output(2 * wanted + 1024)
        elif status == NEEDS_CACHE:
            self._grow_cache()
        elif status == NEEDS_SCRATCH:
            self.make_scratch(at.SCRATCH_PER_BYTE * self._batch_bytes())

    def _batch_bytes(self) -> int:
        places, first = self.kept(PLACES), int(self.fields[at.WORDS_DONE])
        last = min(first + at.BATCH, int(self.fields[WORDS]))
        return int(places[last] - places[first])

    def _grow_cache(self) -> None:
        """Twice the tables, up to their bounds; then only as large as one batch demands."""
        fields, batch = self.fields, self._batch_bytes()
        self.make_cache(
            min(2 * int(fields[at.NUM_LINES]), _MOST_LINES),
            min(2 * int(fields[at.NUM_LONGS]), _MOST_LONGS),
            max(min(2 * int(fields[at.LONG_TEXT_SIZE]), _MOST_LONG_TEXT), batch + 1024),
            max(min(2 * int(fields[at.SPILL_SIZE]), _MOST_SPILL), 2 * batch + 4096),
        )


class FastEncoder:
    """Encodes UTF-8 by a published pattern; many threads may use one."""

    def __init__(self, pattern: str, tables: Tables) -> None:
        self.pattern, self.tables = pattern, tables
        self.wide = tables.offsets.size - 1 > 1 << 16
        self._encode_texts = objects.entry("encode", "encode_texts")
        self._idle: list[EncodeContext] = []

    @property
    def output_type(self) -> type:
        """uint16 where every id fits, else uint32."""
        return np.uint32 if self.wide else np.uint16

    def encode(self, texts: Sequence[bytes | memoryview | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts, one after the other, and where each ends (int64)."""
        arrays = [np.frombuffer(text, np.uint8) for text in texts]
        addresses = np.array([array.ctypes.data for array in arrays], np.int64)
        lengths = np.array([array.size for array in arrays], np.int64)
        return self.encode_memory(addresses, lengths)

    def encode_memory(self, addresses: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same of texts given by their addresses and lengths (int64); the caller keeps the memory."""
        context = self._take()
        ends = context.point(at.ENDS, np.zeros(len(addresses), np.int64))
        context.point(at.TEXTS, addresses)
        context.point(at.LENGTHS, lengths)
        context.fields[[at.NUM_TEXTS, at.TEXTS_DONE, at.OUTPUT_COUNT, POSITION]] = len(addresses), 0, 0, -1
        context.make_output(int(lengths.sum()) // 2 + 1024)
        while status := self._encode_texts(context.address):
            context.grow(status)
        ids = context.kept(at.OUTPUT)[: context.fields[at.OUTPUT_COUNT]]
        self._idle.append(context)
        return ids, ends

    def _take(self) -> EncodeContext:
        try:
            return self._idle.pop()
        except IndexError:
            return EncodeContext(self.pattern, self.tables, self.wide)


def _aligned_zeros(count: int) -> np.ndarray:
    """uint64 zeros that begin where a cache line does."""
    array = np.zeros(count + 8, np.uint64)
    skip = (-array.ctypes.data % 64) // 8
    return array[skip : skip + count]
