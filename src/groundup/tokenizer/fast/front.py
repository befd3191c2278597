"""The Python side of the scanners: the memory of a context, and splitting a text for those who want the pieces."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from groundup.tokenizer.fast import context as at
from groundup.tokenizer.fast import objects
from groundup.tokenizer.unicode_classes import class_tables

# pattern -> (unit and entry of its scanner, digits that a number may have, does white space at the end beat line ends)
SCANNERS = {
    "gpt2": ("scan_gpt2", 0, 0),
    "smollm": ("scan_gpt2", 1, 0),
    "cl100k": ("scan_cl100k", 3, 1),
    "llama3": ("scan_cl100k", 3, 0),
    "qwen2": ("scan_cl100k", 1, 0),
    "o200k": ("scan_o200k", 3, 0),
}
MOST_STAGED = 1 << 30  # bytes: places are 32-bit numbers
_STAGE_BYTES = 1 << 15  # of text at a time: all that belongs to it stays in the second-level cache


BLOCK_PADDING = 64  # bytes behind the end of a block that may be read


class Specials(NamedTuple):
    """The special tokens of a block, as blocks.py reads them."""

    rows: np.ndarray  # int64 [tokens, 3]
    text: np.ndarray  # uint8
    first_bytes: np.ndarray  # int64
    beginnings: np.ndarray  # uint8 [65536]

    @classmethod
    def of(cls, tokens: Mapping[bytes, int]) -> "Specials":
        """Of the ids of these tokens, -1 for one that only separates texts."""
        longest_first = sorted(tokens, key=len, reverse=True)
        sizes = np.array([len(token) for token in longest_first], np.int64)
        ids = np.array([tokens[token] for token in longest_first], np.int64)
        beginnings = np.zeros((256, 256), np.uint8)  # by the second byte, and the first
        for token in tokens:
            beginnings[token[1] if len(token) > 1 else slice(None), token[0]] = 1
        return cls(
            rows=np.stack([np.cumsum(sizes) - sizes, sizes, ids], axis=1),
            text=np.frombuffer(b"".join(longest_first), np.uint8),
            first_bytes=np.array(sorted({token[0] for token in longest_first}), np.int64),
            beginnings=beginnings.reshape(-1),
        )


class Context:
    """An int64 array of fields and the arrays that it points to, which live as long as it does.

    One thread at a time may use a context; each has its own. Without a pattern there is no scanner.
    """

    def __init__(self, pattern: str | None, fields: int = at.FRONT_FIELDS, stage_bytes: int = _STAGE_BYTES) -> None:
        self.fields = np.zeros(fields, np.int64)
        self.address = self.fields.ctypes.data
        self._kept: dict[int, np.ndarray] = {}
        if pattern is not None:
            unit, max_digits, end_takes_space = SCANNERS[pattern]
            self.fields[at.SCANNER] = objects.addresses(unit)[unit]
            self.fields[[at.MAX_DIGITS, at.END_TAKES_SPACE]] = max_digits, end_takes_space
        index, pages = class_tables()
        self.point(at.CLASS_INDEX, index)
        self.point(at.CLASS_PAGES, pages)
        self.make_stage(stage_bytes)

    def point(self, field: int, array: np.ndarray) -> np.ndarray:
        """Let a field hold the address of an array, and keep the array."""
        address = array.ctypes.data
        self._kept[field], self.fields[field] = array, address
        return array

    def make_stage(self, size: int) -> None:
        """Room for chunks of `size` bytes: the copy of the text, its bit maps, the places of its pre-tokens."""
        if size > MOST_STAGED:
            raise ValueError(f"a text of more than {MOST_STAGED:,} bytes without a place to cut")
        words = size // 64 + 4
        stage, maps = np.zeros(size + 2 * at.PADDING + 64, np.uint8), np.zeros(at.NUM_MAPS * words, np.uint64)
        places = np.empty(size + 128, np.int32)
        self.point(at.STAGE, stage)
        self.point(at.MAPS, maps)
        self.point(at.PLACES, places)
        self.fields[[at.STAGE_SIZE, at.MAP_WORDS, at.HAS_FOREIGN]] = size, words, 0

    def grow_stage(self) -> None:
        """Twice the room, for a text without a place to cut within the present one."""
        self.make_stage(2 * int(self.fields[at.STAGE_SIZE]))

    def read(self, text: np.ndarray) -> None:
        """Begin with a new text (uint8)."""
        self.point(at.TEXT, text)
        self.fields[at.LENGTH] = text.size
        self.fields[at.POSITION] = 0

    def read_block(self, block: np.ndarray, length: int, specials: Specials) -> None:
        """Begin with a new block (uint8): `length` bytes of UTF-8 and BLOCK_PADDING more."""
        self.point(at.TEXT, block)
        self.fields[[at.BLOCK_LENGTH, at.NEXT_TEXT, at.FOUND, at.LENGTH, at.POSITION]] = length, 0, -1, 0, 0
        self.point(at.SPECIALS, specials.rows)
        self.point(at.SPECIAL_BYTES, specials.text)
        self.point(at.FIRST_BYTES, specials.first_bytes)
        self.point(at.BEGINNINGS, specials.beginnings)
        self.fields[[at.NUM_SPECIALS, at.NUM_FIRST_BYTES]] = len(specials.rows), specials.first_bytes.size

    def kept(self, field: int) -> np.ndarray:
        """The array that a field points to."""
        return self._kept[field]


class Splitter:
    """A published pattern's pre-tokens of UTF-8 bytes. Not for several threads at a time."""

    def __init__(self, pattern: str) -> None:
        unit = SCANNERS[pattern][0]
        self._scan, self._context = objects.entry(unit, unit), Context(pattern)

    def split(self, data: bytes) -> list[bytes]:
        """The pre-tokens in order."""
        return list(self._split(data))

    def _split(self, data: bytes) -> Iterator[bytes]:
        context, start = self._context, 0
        context.read(np.frombuffer(data, np.uint8))
        while start < len(data):
            if self._scan(context.address) == at.NEEDS_STAGE:
                context.grow_stage()
                continue
            places = context.kept(at.PLACES)[: int(context.fields[at.WORDS]) + 1].tolist()
            yield from (data[start + begin : start + end] for begin, end in pairwise(places))
            start += places[-1]
