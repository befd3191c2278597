"""Counting pre-tokens with the kernels of count.py: the tables' memory, made larger on request."""

from collections.abc import Iterable

import numpy as np

from groundup.tokenizer.fast import context as front
from groundup.tokenizer.fast import count_context as at
from groundup.tokenizer.fast.front import SCANNERS, Context, Specials
from groundup.tokenizer.fast.merges import PADDING, Words, room_for_words
from groundup.tokenizer.fast.objects import entry

TEXT_END = b"\xff"  # no byte of UTF-8: what separates texts that are put together in one block
_KERNELS = ("is_utf8", "count_block", "add_words", "list_words", "refill_short", "refill_long", "refill_huge")
_TABLES = (at.SHORT, at.LONG, at.HUGE, at.ARENA)
_FIRST_BITS = {at.SHORT_BITS: 14, at.LONG_BITS: 12, at.HUGE_BITS: 8}
_LARGE_BITS = 18  # a table grows to four times its size up to here, then to twice
_ARENA_BYTES = 1 << 14


def can_count(pattern: str) -> bool:
    """Whether there is a scanner for a pattern; any other's words are added, see `WordTables.add`."""
    return pattern in SCANNERS


class WordTables:
    """How often each word occurs. One thread at a time may use it.

    `pattern` is a name for which `can_count`, or None for tables to which words are only added. ImportError where
    there is no Numba.
    """

    def __init__(self, pattern: str | None = None, special_tokens: Iterable[str] = ()) -> None:
        self._limit: int | None = None
        self._kernels = {name: entry("count", name) for name in _KERNELS}
        self._front = Context(pattern, at.COUNT_FIELDS) if pattern else None
        self._fields = self._front.fields if self._front else np.zeros(at.COUNT_FIELDS, np.int64)
        self._memory: dict[int, np.ndarray] = {}
        self._room_for_misses()
        separators = [TEXT_END, *(token.encode("utf-8", "surrogatepass") for token in special_tokens)]
        self._specials = Specials.of(dict.fromkeys(separators, -1))
        self._make_table(at.SHORT, at.SHORT_BITS, at.SHORT_SLOT)
        self._make_table(at.LONG, at.LONG_BITS, at.LONG_SLOT)
        self._make_table(at.HUGE, at.HUGE_BITS, at.HUGE_SLOT)
        self._more_arena(_ARENA_BYTES)

    @property
    def can_scan(self) -> bool:
        """Whether there is a pattern to `count` by."""
        return self._front is not None

    def count(self, block: np.ndarray, length: int) -> None:
        """Count the words of a block (uint8, `length` bytes of UTF-8 and BLOCK_PADDING more) of several texts.

        Texts end at special tokens and at TEXT_END.
        """
        assert self._front, "only where `can_scan`"
        self._front.read_block(block, length, self._specials)
        self._call("count_block")

    def is_utf8(self, block: np.ndarray, length: int) -> bool:
        """Whether a block, as `count` takes it, is valid UTF-8."""
        self._keep(front.TEXT, block)
        self._fields[front.BLOCK_LENGTH] = length
        return self._kernels["is_utf8"](self._fields.ctypes.data) == 1

    def add(self, words: Words) -> None:
        """Add words that were counted elsewhere."""
        self._set_words(words)
        self._fields[at.WORDS_LISTED] = len(words.ends)
        self._fields[at.NEXT_WORD] = 0
        self._call("add_words")

    def bound(self, limit: int | None) -> None:
        """Let the tables have at most so many bytes. ValueError when they have more, and before they get more."""
        self._limit = limit
        self._check_limit(0)

    def words(self) -> Words:
        """All words with their counts, in no order that means anything."""
        words = room_for_words(len(self), int(self._fields[at.WORD_BYTES]))
        self._set_words(words)
        self._call("list_words")
        return words

    def __len__(self) -> int:
        return int(self._fields[[at.NUM_SHORT, at.NUM_LONG, at.NUM_HUGE]].sum())

    @property
    def nbytes(self) -> int:
        """Memory of the tables."""
        return sum(self._memory[table].nbytes for table in _TABLES if table in self._memory)

    def _set_words(self, words: Words) -> None:
        self._keep(at.WORD_TEXT, words.text)
        self._keep(at.WORD_ENDS, words.ends)
        self._keep(at.WORD_COUNTS, words.counts)

    def _keep(self, field: int, array: np.ndarray) -> None:
        self._memory[field] = array
        self._fields[field] = array.ctypes.data

    def _call(self, name: str) -> None:
        """Run a kernel, with as much room as it asks for."""
        while (status := self._kernels[name](self._fields.ctypes.data)) != at.DONE:
            self._make_room(status)

    def _make_room(self, status: int) -> None:
        if status == at.NEEDS_SHORT:
            self._refill("refill_short", at.SHORT, at.SHORT_BITS, at.SHORT_SLOT)
        elif status == at.NEEDS_LONG:
            self._refill("refill_long", at.LONG, at.LONG_BITS, at.LONG_SLOT)
        elif status == at.NEEDS_HUGE:
            self._refill("refill_huge", at.HUGE, at.HUGE_BITS, at.HUGE_SLOT)
        elif status == at.NEEDS_ARENA:
            self._more_arena(int(1.5 * self._fields[at.NEEDED]))
        else:
            assert status == front.NEEDS_STAGE and self._front
            self._front.grow_stage()
            self._room_for_misses()

    def _room_for_misses(self) -> None:
        self._keep(at.MISSES, np.empty(int(self._fields[front.STAGE_SIZE]) + 64, np.uint64))

    def _make_table(self, table: int, bits: int, slot: int) -> None:
        grown = self._fields[bits] + (2 if self._fields[bits] < _LARGE_BITS else 1)
        grown = int(grown) if table in self._memory else _FIRST_BITS[bits]
        self._check_limit(8 * slot << grown)
        self._keep(table, np.zeros((1 << grown, slot), np.uint64))
        self._fields[bits] = grown  # last, so that an error leaves all as it was

    def _check_limit(self, more: int) -> None:
        if self._limit is not None and self.nbytes + more > self._limit:
            raise ValueError(
                f"memory: {len(self):,} different words so far, and no room for more: their tables would need "
                f"{self.nbytes + more:,} bytes of {self._limit:,}; allow more memory, or take less text"
            )

    def _refill(self, name: str, table: int, bits: int, slot: int) -> None:
        old = self._memory[table]
        self._fields[at.OLD_TABLE] = old.ctypes.data
        self._fields[at.OLD_BITS] = self._fields[bits]
        self._make_table(table, bits, slot)
        self._call(name)

    def _more_arena(self, size: int) -> None:
        self._check_limit(size)
        arena = np.empty(size + PADDING, np.uint8)
        if at.ARENA in self._memory:
            used = int(self._fields[at.ARENA_USED])
            arena[:used] = self._memory[at.ARENA][:used]
        self._keep(at.ARENA, arena)
        self._fields[at.ARENA_SIZE] = size
