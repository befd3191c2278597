"""The Python side of encoding: contexts for as many threads as ask, room that grows, texts in and arrays out."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from groundup.tokenizer.fast import encode_context as at
from groundup.tokenizer.fast import objects
from groundup.tokenizer.fast.aligned import aligned_zeros
from groundup.tokenizer.fast.context import (
    HAS_ZERO,
    INVALID,
    LENGTH,
    NEEDS_OUTPUT,
    NEEDS_SCRATCH,
    NEEDS_STAGE,
    PADDING,
    PLACES,
    POSITION,
    STAGE,
    STAGE_SIZE,
    TEXT,
    WORDS,
)
from groundup.tokenizer.fast.front import MOST_STAGED, SCANNERS, Context, Specials
from groundup.tokenizer.fast.strings import StringEncoder
from groundup.tokenizer.fast.vocabulary_tables import Tables


@dataclass(frozen=True)
class Sizes:
    """How large the tables of a context are at first, and at most: powers of two."""

    stage: int = 1 << 15  # bytes
    quick_bits: int = 15
    lines: tuple[int, int] = (1 << 14, 1 << 19)  # of 64 bytes
    longs: tuple[int, int] = (1 << 12, 1 << 17)  # of 32 bytes
    long_text: tuple[int, int] = (1 << 18, 1 << 23)  # bytes
    spill: tuple[int, int] = (1 << 16, 1 << 22)  # of 4 bytes
    output: int = 1 << 14  # ids of one short text

    def doubled(self, times: int) -> "Sizes":
        """Tables that begin so many times twice as large, within their bounds."""
        bounded = {name: getattr(self, name) for name in ("lines", "longs", "long_text", "spill")}
        return replace(self, **{name: (min(low << times, high), high) for name, (low, high) in bounded.items()})


# A batch must fit into empty tables: longs at least 4 * BATCH, lines BATCH.
SMALL = Sizes(1 << 12, 11, (1 << 12, 1 << 12), (1 << 12, 1 << 12), (1 << 14, 1 << 14), (1 << 14, 1 << 14), 1 << 15)

_MOST_IDLE = 1 << 22  # bytes of stage or scratch that a context may keep while nobody uses it
_FIRST_SCRATCH = at.SCRATCH_PER_BYTE * 1024


class Encoded(NamedTuple):
    """Ids of texts one after the other, where each text ends (int64), and whether all of it was valid UTF-8."""

    ids: np.ndarray
    ends: np.ndarray
    is_valid: bool


class EncodeContext(Context):
    """A context with the tables of what was encoded before. They grow up to their bounds; full, they forget it all."""

    def __init__(self, pattern: str | None, tables: Tables, wide: bool, int_objects: np.ndarray, sizes: Sizes) -> None:
        super().__init__(pattern, at.ENCODE_FIELDS, sizes.stage)
        self._sizes = sizes
        self.point(at.OBJECTS, int_objects)
        self.fields[at.NONE] = id(None)
        self.fields[at.ENCODE_TEXT] = objects.addresses("encode")["encode_text"]
        self.fields[at.LANE_BITS] = 32 if wide else 16
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
        self.fields[at.LACKS_BYTES] = (tables.byte_ids == at.NO_ID).any()
        self.fields[at.PAIRS_SHIFT] = tables.pairs_shift
        self.fields[at.NUM_TOKENS] = self.fields[at.TOKEN_TABLE_SIZE] = tables.token_table.size
        self.point(at.VALUES, np.zeros(at.BATCH + 8, np.uint64))
        self.point(at.MISSES, np.zeros(at.BATCH + 8, np.int32))
        self.point(at.PROBES, np.zeros(4 * at.GROUP, np.uint64))
        self.point(at.UNRESOLVED, np.zeros(at.GROUP + 1, np.int32))
        self.fields[at.QUICK_SHIFT] = 64 - sizes.quick_bits
        self.make_scratch(_FIRST_SCRATCH)
        self.make_cache(sizes.lines[0], sizes.longs[0], sizes.long_text[0], sizes.spill[0])
        self.make_output(sizes.output)

    def make_scratch(self, size: int) -> None:
        self.point(at.SCRATCH, np.empty(size // 8 + 1, np.uint64))
        self.fields[at.SCRATCH_SIZE] = size

    def make_cache(self, lines: int, longs: int, long_text: int, spill: int) -> None:
        """Empty tables of these sizes."""
        self.point(at.QUICK, aligned_zeros((2 << self._sizes.quick_bits) + 2))
        self.point(at.LINES, aligned_zeros(8 * lines))
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
        elif status == NEEDS_SCRATCH:
            self.make_scratch(at.SCRATCH_PER_BYTE * self._batch_bytes())
        elif status == at.NEEDS_LINES and self.fields[at.NUM_LINES] < self._sizes.lines[1]:
            self._refill("refill_lines", at.LINES, at.NUM_LINES, 8)
        elif status == at.NEEDS_LONGS and self.fields[at.NUM_LONGS] < self._sizes.longs[1]:
            self._refill("refill_longs", at.LONGS, at.NUM_LONGS, 4)
        elif status == at.NEEDS_LONG_TEXT and self.fields[at.LONG_TEXT_SIZE] < self._sizes.long_text[1]:
            self._lengthen(at.LONG_TEXT, at.LONG_TEXT_SIZE)
        elif status == at.NEEDS_SPILL and self.fields[at.SPILL_SIZE] < self._sizes.spill[1]:
            self._lengthen(at.SPILL, at.SPILL_SIZE)
        else:
            self._forget()

    def shrink(self) -> None:
        """Let go of texts and output, and of what an unusually long pre-token made grow."""
        for field in (TEXT, at.TEXTS, at.LENGTHS, at.ENDS):
            self._kept.pop(field, None)
        self.fields[at.OUTPUT_COUNT] = 0
        self.make_output(self._sizes.output)
        if self.fields[STAGE_SIZE] > self._sizes.stage:
            self.make_stage(self._sizes.stage)
        longest = self._sizes.long_text[1], self._sizes.spill[1]
        if self.fields[at.LONG_TEXT_SIZE] > longest[0] or self.fields[at.SPILL_SIZE] > longest[1]:
            self.make_cache(int(self.fields[at.NUM_LINES]), int(self.fields[at.NUM_LONGS]), *longest)
        if self.fields[at.SCRATCH_SIZE] > _MOST_IDLE:
            self.make_scratch(_FIRST_SCRATCH)

    def set_pieces(self, data: bytes, ends: np.ndarray) -> None:
        """Stage a text whose pre-tokens are known, as a scanner would have. ValueError for more than places can say."""
        if len(data) > MOST_STAGED:
            raise ValueError(f"a text of {len(data):,} bytes without a place to cut; at most {MOST_STAGED:,}")
        self.point(STAGE, np.frombuffer(data + bytes(PADDING), np.uint8))
        places = self.point(PLACES, np.zeros(ends.size + 1, np.int32))
        places[1:] = ends
        self.fields[[HAS_ZERO, WORDS, at.WORDS_DONE]] = b"\0" in data, ends.size, 0
        self.fields[[LENGTH, POSITION, at.OUTPUT_COUNT]] = 0

    def _batch_bytes(self) -> int:
        places, first = self.kept(PLACES), int(self.fields[at.WORDS_DONE])
        last = min(first + at.BATCH, int(self.fields[WORDS]))
        return int(places[last] - places[first])

    def _refill(self, name: str, table: int, count: int, width: int) -> None:
        """Twice the lines or rows of a table, of `width` 64-bit numbers each."""
        old, old_count = self.kept(table), int(self.fields[count])
        self.fields[[at.OLD_TABLE, at.OLD_SIZE]] = self.fields[table], old_count
        self.point(table, aligned_zeros(2 * old_count * width))
        self.fields[count] = 2 * old_count
        objects.entry("encode", name)(self.address)
        del old  # not before it was read

    def _lengthen(self, field: int, size: int) -> None:
        """Twice the room for what is there."""
        old = self.kept(field)
        longer = np.empty(2 * old.size, old.dtype)
        longer[: old.size] = old
        self.point(field, longer)
        self.fields[size] = longer.size

    def _forget(self) -> None:
        """Empty tables: as large as now, or as this batch demands."""
        batch = self._batch_bytes()
        self.make_cache(
            int(self.fields[at.NUM_LINES]),
            int(self.fields[at.NUM_LONGS]),
            max(min(int(self.fields[at.LONG_TEXT_SIZE]), self._sizes.long_text[1]), batch + 1024),
            max(min(int(self.fields[at.SPILL_SIZE]), self._sizes.spill[1]), 2 * batch + 4096),
        )


class FastEncoder:
    """Encodes by the tables of a vocabulary; as many threads as like may use one.

    `pattern` is a published one, or None when the caller brings the pre-tokens (`encode_pieces`).
    """

    def __init__(
        self, pattern: str | None, tables: Tables, sizes: Sizes | None = None, int_objects: np.ndarray | None = None
    ) -> None:
        self.pattern, self.tables, self._sizes = pattern, tables, sizes or Sizes()
        self.wide = tables.num_ids >= 1 << 16
        objects.prepare("texts", "encode", *([SCANNERS[pattern][0]] if pattern else []))
        self._encode_texts = objects.entry("texts", "encode_texts")
        self._encode_block = objects.entry("texts", "encode_block")
        self._find_texts = objects.python_entry("texts", "find_texts", ctypes.py_object)
        self._find_bytes = objects.python_entry("texts", "find_bytes", ctypes.py_object)
        self._list_ids = objects.python_entry("texts", "list_ids", ctypes.c_int64, ctypes.c_int64)
        self._int_objects = np.arange(tables.num_ids).astype(object) if int_objects is None else int_objects
        self._idle: list[EncodeContext] = []

    @property
    def output_type(self) -> type:
        """uint16 where every id fits, else uint32."""
        return np.uint32 if self.wide else np.uint16

    def encode_list(self, text: str) -> list[int]:
        """The ids of one text as a list. UnicodeEncodeError for surrogates, TypeError for what is no string."""
        try:
            if (found := self._strings.to_list(text)) is None:
                self._strings.make_room()
                found = self.encode_long(text)
            return found
        except TypeError:
            raise TypeError(f"text: expected str, not {type(text).__name__}") from None

    def encode_array(self, text: str) -> np.ndarray:
        """The ids of one text as an array. Errors as those of `encode_list`."""
        try:
            if (found := self._strings.to_bytes(text)) is not None:
                return np.frombuffer(found, self.output_type)
            self._strings.make_room()
            return self.encode(*self.find([text])).ids
        except TypeError:
            raise TypeError(f"text: expected str, not {type(text).__name__}") from None

    def encode_long(self, text: str) -> list[int]:
        """`encode_list` without the tables for short texts."""
        return self.encode_lists(*self.find([text]))[0]

    def find(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Addresses and lengths of the strings' UTF-8, which they keep. UnicodeEncodeError for surrogates."""
        return self._found_by(self._find_texts, texts)

    def find_bytes(self, texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Addresses and lengths of what bytes objects hold. TypeError for what is none."""
        return self._found_by(self._find_bytes, texts)

    def _found_by(self, find: Callable[[int, Any], None], texts: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        context = self._take()
        addresses = context.point(at.TEXTS, np.zeros(len(texts), np.int64))
        lengths = context.point(at.LENGTHS, np.zeros(len(texts), np.int64))
        context.fields[at.NUM_TEXTS] = len(texts)
        try:
            find(context.address, texts)
        finally:
            self._idle.append(context)
        return addresses, lengths

    def encode_lists(self, addresses: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
        """The ids of each text in memory as lists."""
        context = self._encode(addresses, lengths)
        ends = context.kept(at.ENDS).tolist()
        lists = [self._list_ids(context.address, first, end) for first, end in zip([0, *ends], ends, strict=False)]
        self._give_back(context)
        return lists

    def encode(self, addresses: np.ndarray, lengths: np.ndarray) -> Encoded:
        """The ids of texts in memory (addresses and lengths are int64; the caller keeps the texts). A length of
        -1 - n means the special token of the id n."""
        context = self._encode(addresses, lengths)
        ids = context.kept(at.OUTPUT)[: context.fields[at.OUTPUT_COUNT]]
        found = Encoded(ids, context.kept(at.ENDS), not context.fields[INVALID])
        self._give_back(context)
        return found

    def encode_block(
        self, block: np.ndarray, length: int, specials: Specials, output: np.ndarray
    ) -> tuple[np.ndarray, bool]:
        """The ids of a block, see `Context.read_block`, and whether it was valid UTF-8. They are in `output` (of
        `output_type`), or in a larger array if they did not fit."""
        context = self._take()
        context.read_block(block, length, specials)
        context.fields[[INVALID, WORDS, at.WORDS_DONE, at.OUTPUT_COUNT]] = 0
        context.point(at.OUTPUT, output)
        context.fields[at.OUTPUT_SIZE] = output.size
        while status := self._encode_block(context.address):
            context.grow(status)
        ids, is_valid = context.kept(at.OUTPUT)[: context.fields[at.OUTPUT_COUNT]], not context.fields[INVALID]
        self._give_back(context)
        return ids, is_valid

    def encode_pieces(self, data: bytes, ends: np.ndarray) -> np.ndarray:
        """The ids of pre-tokens that end at these places of `data` (int64)."""
        context = self._take()
        context.set_pieces(data, ends)
        context.make_output(len(data) // 2 + 1024)
        encode_text = objects.entry("encode", "encode_text")
        while status := encode_text(context.address):
            context.grow(status)
        ids = context.kept(at.OUTPUT)[: context.fields[at.OUTPUT_COUNT]]
        self._give_back(context)
        return ids

    def _encode(self, addresses: np.ndarray, lengths: np.ndarray) -> EncodeContext:
        context = self._take()
        context.point(at.TEXTS, addresses)
        context.point(at.LENGTHS, lengths)
        context.point(at.ENDS, np.zeros(len(addresses), np.int64))
        context.fields[[at.NUM_TEXTS, at.TEXTS_DONE, at.OUTPUT_COUNT, POSITION]] = len(addresses), 0, 0, -1
        context.fields[INVALID] = 0
        context.make_output(int(np.maximum(lengths, 1).sum()) // 2 + 1024)
        while status := self._encode_texts(context.address):
            context.grow(status)
        return context

    def small(self) -> "FastEncoder":
        """An encoder of the same vocabulary whose tables take less than a megabyte."""
        return FastEncoder(self.pattern, self.tables, SMALL, self._int_objects)

    @cached_property
    def _strings(self) -> StringEncoder:
        sizes = replace(self._sizes, output=at.LONGEST_STRING + 128)
        known = self.pattern, self.tables, self.wide, self._int_objects
        return StringEncoder(lambda doublings: EncodeContext(*known, sizes.doubled(doublings)))

    def _take(self) -> EncodeContext:
        try:
            return self._idle.pop()
        except IndexError:
            return self._new_context()

    def _give_back(self, context: EncodeContext) -> None:
        context.shrink()
        self._idle.append(context)

    def _new_context(self) -> EncodeContext:
        return EncodeContext(self.pattern, self.tables, self.wide, self._int_objects, self._sizes)
