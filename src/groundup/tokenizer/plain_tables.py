"""The tables of words where there is no Numba: the same as `fast.counts.WordTables`, in plain Python."""

from collections import Counter

import numpy as np

from groundup.tokenizer.fast.merges import Words, words_of

_BYTES_PER_WORD = 150  # of a dictionary entry, its bytes object and its count


class PlainTables:
    """How often each word occurs. Words are only added: they are split elsewhere."""

    def __init__(self) -> None:
        self._counts: Counter[bytes] = Counter()
        self._limit: int | None = None

    def is_utf8(self, block: np.ndarray, length: int) -> bool:
        """Whether the first `length` bytes of a block are valid UTF-8."""
        try:
            block[:length].tobytes().decode()
        except UnicodeDecodeError:
            return False
        return True

    def add(self, words: Words) -> None:
        """Add words with their counts. ValueError when they need more than the bound."""
        for word, count in words.items():
            self._counts[word] += count
        self.bound(self._limit)

    def words(self) -> Words:
        """All words with their counts."""
        return words_of(self._counts)

    def bound(self, limit: int | None) -> None:
        """Let the words take at most about so many bytes. ValueError when they do not."""
        self._limit = limit
        if limit is not None and self.nbytes > limit:
            raise ValueError(
                f"memory: {len(self):,} different words so far, and no room for more: they need about "
                f"{self.nbytes:,} bytes of {limit:,}; allow more memory, or take less text"
            )

    @property
    def nbytes(self) -> int:
        """Memory of the words, about."""
        return _BYTES_PER_WORD * len(self)

    def __len__(self) -> int:
        return len(self._counts)
