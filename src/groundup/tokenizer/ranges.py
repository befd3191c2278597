"""Byte ranges of a file that are independent of each other: cut where no pre-token and no special token is cut."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import regex

from groundup.tokenizer.pretokenize import Pretokenizer, after_boundary

_WINDOW = 1 << 14  # bytes looked through at a time
_LONGEST_CHARACTER = 4


@dataclass(frozen=True)
class FileRange:
    """Some bytes of a file, which need not be UTF-8."""

    path: Path
    range: tuple[int, int, int]  # number of the file, start, end

    @property
    def size(self) -> int:
        """Bytes to read."""
        return self.range[2] - self.range[1]

    def fill(self, buffer: np.ndarray) -> None:
        """Write these bytes to the beginning of a buffer. OSError when they are not there any more."""
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.range[1])
            rest: Any = buffer[: self.size]
            while len(rest):
                count = file.readinto(rest)
                if not count:
                    raise OSError(f"{self.path}: became shorter while it was read")
                rest = rest[count:]


class Cutter:
    """Finds places where a file can be cut: the pre-tokens of the parts are those of the whole.

    A cut is after a word (published patterns only), or after a special token, where no special token spans it. That
    can be seen from the bytes around it, so the parts of a file are independent of each other. Characters around a
    cut are whole, and so are the parts of what is not UTF-8.
    """

    def __init__(self, pattern: str | None, special_tokens: Iterable[str]) -> None:
        self._specials = sorted(special_tokens, key=len, reverse=True)
        self._margin = max((len(token.encode()) for token in self._specials), default=0) + _LONGEST_CHARACTER
        self._special = regex.compile("|".join(map(regex.escape, self._specials)) or "(?!)")
        self._cuts_words = Pretokenizer(pattern).is_published
        # What is not UTF-8 is read as U+FFFD, so a special token with that character may stand where no eye sees it.
        self._cuts = not any("\ufffd" in token for token in self._specials)

    def ranges(self, path: Path, step: int) -> Iterator[tuple[int, int]]:
        """(start, end) of consecutive parts of a file, each of about `step` bytes or without a place to cut."""
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            start = 0
            while start < size:
                end = self._next_cut(file, start + step, size)
                yield start, end
                start = end

    def _next_cut(self, file: BinaryIO, start: int, size: int) -> int:
        """The first place from `start` on where the file can be cut; its size when there is none."""
        while start < size and self._cuts:
            begin = max(0, start - 2 * self._margin)  # a token before the cut, and what may span its begin
            file.seek(begin)
            data = file.read(start - begin + _WINDOW + self._margin)
            cut = self._cut_within(data, start - begin, min(start - begin + _WINDOW, len(data)))
            if cut is not None:
                return begin + cut
            start += _WINDOW
        return size

    def _cut_within(self, data: bytes, first: int, end: int) -> int | None:
        """The first cut in data[first:end], or None."""
        head = next((place for place, byte in enumerate(data) if byte & 0xC0 != 0x80), len(data))
        text = data[head:].decode("utf-8", "surrogateescape")
        for candidate in self._candidates(text):
            place = head + len(text[:candidate].encode("utf-8", "surrogateescape"))
            if first <= place < end and not self._is_spanned(text, candidate):
                return place
        return None

    def _candidates(self, text: str) -> Iterator[int]:
        """Ends of words, then of special tokens that are surely read as such."""
        if self._cuts_words:
            yield from (match.start() for match in after_boundary().finditer(text))
        for match in self._special.finditer(text, overlapped=True):
            if not self._is_spanned(text, match.start()):
                yield match.end()

    def _is_spanned(self, text: str, place: int) -> bool:
        """Whether what may be a special token begins before a place and ends after it."""
        return any(
            text.find(token, max(0, place - len(token) + 1), place + len(token) - 1) >= 0 for token in self._specials
        )
