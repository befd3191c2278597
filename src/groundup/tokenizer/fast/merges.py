"""Learning merges with the kernels of learn.py: they own no memory, so it is made here, and made larger on request."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from groundup.tokenizer.fast import learn_context as fields
from groundup.tokenizer.fast.objects import entry

_MAX_LENGTH = 2**31 - 64  # places are 32-bit numbers
_OCCURRENCES_PER_CALL = 5_000_000  # about 0.1 s; a merge costs as much as a thousand
PADDING = 64  # elements that may be read, and not used, behind the last one
_SYMBOLS_PER_PAIR = 400  # so much text for each token wanted, for each time that the last pair merged occurs


@dataclass(frozen=True)
class Words:
    """Different words and how often each occurs: word i is `text[ends[i - 1] + 1 : ends[i]]`.

    The text begins with the 256 bytes, where tokens of one byte are read (word 0 starts at 256), and after each word
    comes a byte that belongs to none.
    """

    text: np.ndarray  # uint8
    ends: np.ndarray  # int64
    counts: np.ndarray  # int64

    def __len__(self) -> int:
        return len(self.ends)

    def items(self) -> Iterator[tuple[bytes, int]]:
        """The words and their counts."""
        text, start = self.text.tobytes(), 256
        for end, count in zip(self.ends.tolist(), self.counts.tolist(), strict=True):
            yield text[start:end], count
            start = end + 1


def room_for_words(num_words: int, num_bytes: int) -> Words:
    """Memory for words of so many bytes together; the text goes on for PADDING bytes behind its end."""
    length = 256 + num_bytes + num_words
    text = np.empty(length + PADDING, np.uint8)
    text[:256] = np.arange(256)
    return Words(text[:length], np.empty(num_words, np.int64), np.empty(num_words, np.int64))


def words_of(counts: Mapping[bytes, int]) -> Words:
    """The words of a mapping. ValueError for a count below 1, and for more text than 64 bits can count."""
    if min(counts.values(), default=1) < 1:
        raise ValueError("counts: a word that occurs less than once")
    if sum(len(word) * count for word, count in counts.items()) >= 1 << 63:
        raise ValueError("counts: 2^63 bytes of text or more, which 64-bit numbers cannot count")
    words = room_for_words(len(counts), sum(map(len, counts)))
    words.text[256:] = np.frombuffer(b"".join(word + b"\0" for word in counts), np.uint8)
    words.ends[:] = np.cumsum(np.fromiter((len(word) + 1 for word in counts), np.int64, len(counts))) + 255
    words.counts[:] = np.fromiter(counts.values(), np.int64, len(counts))
    return words


def memory_needed(length: int, num_merges: int) -> int:
    """Bytes that `learn_merges` takes beside the words, in a text of this length, if they are those of a language.

    Symbols, weights and two lists of occurrences for each byte of text; the table of pairs; 60 bytes for each token.
    """
    pairs = min(4 * (num_merges + (1 << 14)), length)
    return length * (4 + 8 + 4 * 3) + pairs * 150 + (256 + num_merges) * 100


def learn_merges(
    words: Words, num_merges: int, progress: Callable[[int, int], None] | None = None
) -> list[tuple[bytes, bytes]]:
    """The same as `bpe.learn_merges`, of words in one array."""
    tokens = [bytes([byte]) for byte in range(256)]
    merges: list[tuple[bytes, bytes]] = []
    for left, right in _Learner(words, num_merges).learn(progress or _tell_nobody).tolist():
        merges.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
    return merges


def _tell_nobody(done: int, total: int) -> None:
    pass


class _Learner:
    """The memory of one training and its context."""

    def __init__(self, words: Words, num_merges: int) -> None:
        length = len(words.text)
        if length > _MAX_LENGTH:
            raise ValueError(f"the different words have {length} bytes; at most {_MAX_LENGTH} can be learned from")
        self._context = np.zeros(fields.FIELDS, np.int64)
        self._memory: dict[int, np.ndarray] = {}
        self._num_merges = num_merges
        self._symbols = int(np.diff(words.ends, prepend=255).astype(np.float64) @ words.counts.astype(np.float64))
        self._context[fields.BUDGET] = _OCCURRENCES_PER_CALL
        self._keep_words(words)
        self._make_tokens(256 + num_merges)
        self._make_pairs(1 << 16)
        self._more_occurrences(length)
        self._more_heap(1 << 10)

    def _keep_words(self, words: Words) -> None:
        length = len(words.text)
        self._keep(fields.TEXT, words.text)
        self._keep(fields.WORD_ENDS, words.ends)
        self._keep(fields.WORD_COUNTS, words.counts)
        self._keep(fields.SYMBOLS, np.empty(length + PADDING, np.int32))
        self._keep(fields.WEIGHTS, np.empty(length, np.int64))
        self._context[fields.LENGTH] = length
        self._context[fields.WORDS] = len(words)

    def _make_tokens(self, number: int) -> None:
        self._keep(fields.TOKENS, np.empty((number, fields.TOKEN_RECORD), np.int64))
        self._keep(fields.MERGES, np.empty((number - 256, 2), np.int32))
        for tallies, seen in (fields.LEFT_TALLIES, fields.LEFT_SEEN), (fields.RIGHT_TALLIES, fields.RIGHT_SEEN):
            self._keep(tallies, np.zeros((number, fields.TALLY_RECORD), np.int64))
            self._keep(seen, np.empty(number, np.int32))
        self._context[fields.WANTED_TOKENS] = number

    def learn(self, report: Callable[[int, int], None]) -> np.ndarray:
        """The ids of left and right halves, a row for each merge."""
        self._call("lay_out")
        threshold = max(1, self._symbols // (max(self._num_merges, 1) * _SYMBOLS_PER_PAIR))
        while True:
            self._count(threshold)
            while self._call("merge_pairs") == fields.GO_ON:
                report(self._done, self._num_merges)
            if self._done == self._num_merges or threshold == 1:
                report(self._done, self._num_merges)
                return self._memory[fields.MERGES][: self._done]
            threshold = max(1, threshold // 4)

    @property
    def _done(self) -> int:
        return int(self._context[fields.NUM_TOKENS]) - 256

    def _count(self, threshold: int) -> None:
        self._context[fields.THRESHOLD] = threshold
        self._context[fields.CURSOR] = 256
        self._context[fields.NUM_PAIRS] = 0
        self._call("fill_slots")
        self._call("count_pairs")
        self._call("list_pairs")

    def _call(self, name: str) -> int:
        """Run a kernel, with as much memory as it asks for."""
        kernel = entry("learn", name)
        while (status := kernel(self._context.ctypes.data)) in self._remedies:
            self._remedies[status](self, int(self._context[fields.NEEDED]))
        return status

    def _keep(self, field: int, array: np.ndarray) -> None:
        self._memory[field] = array
        self._context[field] = array.ctypes.data

    def _make_pairs(self, slots: int) -> None:
        self._keep(fields.SLOTS, np.empty((slots, 2), np.uint64))
        self._enlarge(fields.PAIRS, np.empty((slots // 2, fields.PAIR_RECORD), np.int64))
        self._context[fields.SLOT_BITS] = slots.bit_length() - 1

    def _enlarge(self, field: int, array: np.ndarray) -> None:
        if field in self._memory:
            array[: len(self._memory[field])] = self._memory[field]
        self._keep(field, array)

    def _more_pairs(self, more: int) -> None:
        pairs = int(self._context[fields.NUM_PAIRS]) + more
        slots = 2 * len(self._memory[fields.SLOTS])
        while slots < 2 * pairs:
            slots *= 2
        self._make_pairs(slots)
        self._call("fill_slots")

    def _more_occurrences(self, needed: int) -> None:
        size = max(needed, int(1.5 * self._context[fields.MAX_OCCURRENCES]))
        self._enlarge(fields.OCCURRENCES_AT, np.empty(size + PADDING, np.int32))
        self._context[fields.MAX_OCCURRENCES] = size

    def _more_heap(self, needed: int) -> None:
        size = max(needed, 2 * int(self._context[fields.MAX_HEAP]))
        self._enlarge(fields.HEAP, np.empty((size, 2), np.int64))
        self._context[fields.MAX_HEAP] = size

    _remedies: dict[int, Any] = {
        fields.NEED_PAIRS: _more_pairs,
        fields.NEED_OCCURRENCES: _more_occurrences,
        fields.NEED_HEAP: _more_heap,
    }
