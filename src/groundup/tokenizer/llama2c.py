"""llama2.c's tokenizer.bin: SentencePiece's vocabulary for Llama 1 and 2, where scores say which pair merges next.

    int32  length of the longest piece; then for each id: float32 score, int32 length, the piece in UTF-8

Ids 0 to 2 are <unk>, <s> (begins a text) and </s> (ends it); ids 3 to 258 are the 256 bytes, for characters that are
no piece of their own (byte fallback; SentencePiece is Kudo and Richardson 2018, arXiv:1808.06226). A text begins with a
space that is not its own, so that its first word is the same piece as inside a sentence.
"""

import heapq
import struct
from collections.abc import Iterable
from pathlib import Path

from groundup.tokenizer.parts import read_bounded
from groundup.tokenizer.pretokenize import well_formed

BEGIN, END = 1, 2
FIRST_BYTE, FIRST_PIECE = 3, 259
_ENTRY = struct.Struct("<fi")
_NONE = -1


class ScoredTokenizer:
    """A vocabulary of pieces with scores, encoded greedily: of all neighbours the pair whose piece scores best merges.

    >>> pieces = [b""] * 259 + [b" ", b"a", b"b", b"ab", b" a"]
    >>> tokenizer = ScoredTokenizer(pieces, [0.0] * 259 + [-9.0, -9.0, -9.0, -1.0, -2.0])
    >>> tokenizer.encode("ab"), tokenizer.encode("a!"), tokenizer.decode([259, 262])
    ([259, 262], [263, 36], 'ab')
    """

    name = "scored pieces"
    unknown = None
    lossless = True

    def __init__(self, pieces: list[bytes], scores: list[float]) -> None:
        if len(pieces) < FIRST_PIECE or len(pieces) != len(scores):
            raise ValueError(f"{len(pieces)} pieces and {len(scores)} scores; expected one each, {FIRST_PIECE} or more")
        self._bytes = [b""] * FIRST_BYTE + [bytes([byte]) for byte in range(256)] + pieces[FIRST_PIECE:]
        self._scores = scores
        self._ids: dict[bytes, int] = {}
        for token in range(FIRST_PIECE, len(pieces)):
            self._ids.setdefault(pieces[token], token)

    @classmethod
    def load(cls, path: str | Path) -> "ScoredTokenizer":
        """Read a tokenizer.bin. ValueError for one that is cut short, or whose lengths make no sense."""
        data, at = read_bounded(Path(path)), 4
        pieces: list[bytes] = []
        scores: list[float] = []
        while at < len(data):
            score, size = _ENTRY.unpack_from(data, at) if at + _ENTRY.size <= len(data) else (0.0, _NONE)
            at += _ENTRY.size
            if not 0 <= size <= len(data) - at or score != score:
                raise ValueError(f"{path}: piece {len(pieces)}: length {size}, score {score}, at byte {at}: damaged")
            pieces.append(data[at : at + size])
            scores.append(score)
            at += size
        try:
            return cls(pieces, scores)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return len(self._bytes)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without `BEGIN` in front. What spells a special token is plain text."""
        return self._merged(self._characters(" " + well_formed(text))) if text else []

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without the space that every text begins with. ValueError for an id that is none."""
        ids = list(ids)
        wrong = next((token for token in ids if not 0 <= token < self.vocab_size), None)
        if wrong is not None:
            raise ValueError(f"id {wrong}: not in the vocabulary, whose ids are below {self.vocab_size}")
        return b"".join(self._bytes[token] for token in ids).decode("utf-8", "replace").removeprefix(" ")

    def _characters(self, text: str) -> list[int]:
        """An id for each character that is a piece, and one for each byte of the others."""
        ids: list[int] = []
        for character in map(str.encode, text):
            token = self._ids.get(character)
            ids += [FIRST_BYTE + byte for byte in character] if token is None else [token]
        return ids

    def _merged(self, ids: list[int]) -> list[int]:
        """Merge the best pair, the leftmost of equals, until none is a piece. A heap, since texts may be long."""
        follows = [*range(1, len(ids)), _NONE]
        precedes = [_NONE, *range(len(ids) - 1)]
        heap: list[tuple[float, int, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if _NONE not in (left, right):
                made = self._ids.get(self._bytes[ids[left]] + self._bytes[ids[right]])
                if made is not None:
                    heapq.heappush(heap, (-self._scores[made], left, ids[left], ids[right], made))

        for left in range(len(ids) - 1):
            offer(left, left + 1)
        while heap:
            _, left, first, second, made = heapq.heappop(heap)
            right = follows[left]
            if right == _NONE or (ids[left], ids[right]) != (first, second):
                continue  # one of the two has merged with another since
            ids[left], ids[right] = made, _NONE
            after = follows[left] = follows[right]
            follows[right] = _NONE
            if after != _NONE:
                precedes[after] = left
            offer(precedes[left], left)
            offer(left, after)
        return [token for token in ids if token != _NONE]
