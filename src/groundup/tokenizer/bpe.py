"""Byte-pair encoding: learning merges from counted pre-tokens, and applying them in the order learned.

Sennrich et al. 2016 (arXiv:1508.07909), over bytes as in Radford et al. 2019. Symbols are ids: 0..255 are the
bytes, 256 + k is what merge number k made.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

Pair = tuple[int, int]
Ranks = Mapping[Pair, tuple[int, int]]  # pair -> (rank, id of the merged token)

_SEPARATOR, _GONE = -1, -2  # between words; the right half of a merged pair
_LONG_PIECE = 64  # symbols; beyond it the heap beats scanning for the lowest rank
_CACHED_PIECES, _CACHED_LENGTH = 1 << 17, 64
_NO_RANK = (1 << 62, -1)
_DESCENDING = bytes(255 - byte for byte in range(256))  # turns byte order around


def learn_merges(
    counts: Mapping[bytes, int], num_merges: int, progress: Callable[[int, int], None] | None = None
) -> list[tuple[bytes, bytes]]:
    """The merges that BPE learns from pre-tokens and how often each occurs, at most `num_merges`.

    Each step merges the most frequent adjacent pair, counted over all positions (`aaa` holds `aa` twice), and
    of equally frequent ones the lexicographically greatest pair of byte strings: no dependence on the order
    of `counts`. Fewer merges come back when no pair is left.

    >>> learn_merges({b"the cat in the hat" * 3: 1}, 3)
    [(b't', b'h'), (b'th', b'e'), (b'the', b' ')]

    The heap is lazy. A pair is born complete, in the merge that makes the newer of its symbols; from then on
    its count only falls, so the counts in the heap are upper bounds, put right when they come to the top.
    """
    index = PairIndex(counts)
    tokens = [bytes([byte]) for byte in range(256)]
    order = [_descending(token) for token in tokens]
    heap = [_entry(pair, count, order) for pair, count in index.counts.items()]
    heapq.heapify(heap)
    merges: list[tuple[bytes, bytes]] = []
    while len(merges) < num_merges and (pair := _pop_most_frequent(heap, index.counts, order)):
        left, right = tokens[pair[0]], tokens[pair[1]]
        merges.append((left, right))
        tokens.append(left + right)
        order.append(_descending(left + right))
        for born in index.merge(pair, len(tokens) - 1):
            heapq.heappush(heap, _entry(born, index.counts[born], order))
        if progress and len(merges) % 100 == 0:
            progress(len(merges), num_merges)
    return merges


class PairIndex:
    """All words as one linked list of symbols, with the count of every adjacent pair and where it stands.

    Merging a pair touches its occurrences only: the whole training is linear in the text, up to the heap's
    logarithm, also when a single word is the whole text. Links to and from separators are real, so no end
    needs a test.
    """

    def __init__(self, word_counts: Mapping[bytes, int]) -> None:
        self.counts: dict[Pair, int] = defaultdict(int)
        self._places: dict[Pair, list[int]] = defaultdict(list)
        self._symbols: list[int] = [_SEPARATOR]
        self._weights: list[int] = [0]
        for word, weight in word_counts.items():
            self._add(word, weight)
        self._left = list(range(-1, len(self._symbols) - 1))
        self._right = list(range(1, len(self._symbols) + 1))

    def _add(self, word: bytes, weight: int) -> None:
        for place, pair in enumerate(pairwise(word), start=len(self._symbols)):
            self.counts[pair] += weight
            self._places[pair].append(place)
        self._symbols += (*word, _SEPARATOR)
        self._weights += [weight] * (len(word) + 1)

    def merge(self, pair: Pair, new: int) -> list[Pair]:
        """Replace `pair` by the symbol `new` everywhere, left to right; returns the pairs that hold `new`.

        Places are in ascending order and may be stale: a symbol never comes back to where it was merged away,
        so comparing the two symbols tells.
        """
        symbols, left, right = self._symbols, self._left, self._right
        born: dict[Pair, None] = {}
        del self.counts[pair]
        for place in self._places.pop(pair):
            partner = right[place]
            if symbols[place] != pair[0] or symbols[partner] != pair[1]:
                continue
            before, after = left[place], right[partner]
            weight = self._weights[place]
            self._lose((symbols[before], pair[0]), weight)
            self._lose((pair[1], symbols[after]), weight)
            symbols[place], symbols[partner] = new, _GONE
            right[place], left[after] = after, place
            for at, neighbours in (before, (symbols[before], new)), (place, (new, symbols[after])):
                if _SEPARATOR not in neighbours:
                    self.counts[neighbours] += weight
                    self._places[neighbours].append(at)
                    born[neighbours] = None
        return [neighbours for neighbours in born if neighbours in self.counts]

    def _lose(self, pair: Pair, weight: int) -> None:
        count = self.counts.get(pair)  # absent: it spans two words, or it is the pair being merged
        if count is None:
            return
        if count > weight:
            self.counts[pair] = count - weight
        else:
            del self.counts[pair], self._places[pair]


def _entry(pair: Pair, count: int, order: list[str]) -> tuple[int, str, str, Pair]:
    return -count, order[pair[0]], order[pair[1]], pair


def _descending(token: bytes) -> str:
    # Compares in the opposite order of `token`. The end mark is above every byte, because of two strings, one
    # a prefix of the other, the longer is the greater and has to come first.
    return token.translate(_DESCENDING).decode("latin-1") + "\u0100"


def _pop_most_frequent(heap: list, counts: Mapping[Pair, int], order: list[str]) -> Pair | None:
    while heap:
        entry = heapq.heappop(heap)
        pair = entry[-1]
        count = counts.get(pair, 0)
        if count == -entry[0]:
            return pair
        if count:
            heapq.heappush(heap, _entry(pair, count, order))
    return None


def rank_merges(merges: Iterable[tuple[bytes, bytes]], ids: Mapping[bytes, int]) -> dict[Pair, tuple[int, int]]:
    """The lookup table of `apply_merges`. ValueError where a merge names a token outside the vocabulary."""
    ranks: dict[Pair, tuple[int, int]] = {}
    for rank, (left, right) in enumerate(merges):
        for token in (left, right, left + right):
            if token not in ids:
                raise ValueError(f"merge {rank} ({left!r}, {right!r}): {token!r} is not in the vocabulary")
        pair = ids[left], ids[right]
        if pair in ranks:
            raise ValueError(f"merge {rank} ({left!r}, {right!r}): the same as merge {ranks[pair][0]}")
        ranks[pair] = rank, ids[left + right]
    return ranks


def splits(vocab: Mapping[int, bytes]) -> list[tuple[bytes, bytes]]:
    """Every way to make a token of two others, in the order of its id: the merges that tiktoken's ranks imply.

    >>> splits({0: b"a", 1: b"b", 2: b"ab", 3: b"aba", 4: b"ba"})
    [(b'a', b'b'), (b'a', b'ba'), (b'ab', b'a'), (b'b', b'a')]
    """
    tokens = set(vocab.values())
    found: list[tuple[bytes, bytes]] = []
    for _, token in sorted(vocab.items()):
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        found += [(left, right) for left, right in halves if left in tokens and right in tokens]
    return found


def apply_merges(symbols: Iterable[int], ranks: Ranks) -> list[int]:
    """Merge until no adjacent pair has a rank; always the pair of lowest rank, of equal ones the leftmost.

    The same as applying all merges one after the other in the order learned, without looking at those that
    cannot apply. A file may list a merge before the merges that make its parts; then only the rule above is
    right, which is also that of tiktoken and Hugging Face.

    >>> ids = {b"t": 116, b"h": 104, b"e": 101, b"th": 256, b"the": 257}
    >>> ranks = rank_merges([(b"t", b"h"), (b"th", b"e")], ids)
    >>> apply_merges(b"theth", ranks)
    [257, 256]
    """
    symbols = list(symbols)
    return _merge_scanning(symbols, ranks) if len(symbols) <= _LONG_PIECE else _merge_with_heap(symbols, ranks)


def _merge_scanning(symbols: list[int], ranks: Ranks) -> list[int]:
    """Find the lowest rank again after each merge: quadratic, but the fastest for a word."""
    while len(symbols) > 1:
        candidates = [ranks.get(pair, _NO_RANK) for pair in pairwise(symbols)]
        best = min(candidates)
        if best is _NO_RANK:
            break
        place = candidates.index(best)
        symbols[place : place + 2] = [best[1]]
    return symbols


def _merge_with_heap(symbols: list[int], ranks: Ranks) -> list[int]:
    """A heap of (rank, place) over a linked list: n log n, for pieces of any length."""
    symbols = [_SEPARATOR, *symbols, _SEPARATOR]
    left, right = list(range(-1, len(symbols) - 1)), list(range(1, len(symbols) + 1))
    heap = [(*ranks[pair], place) for place, pair in enumerate(pairwise(symbols)) if pair in ranks]
    heapq.heapify(heap)
    while heap:
        rank, merged, place = heapq.heappop(heap)
        partner = right[place]
        if symbols[place] == _GONE or ranks.get((symbols[place], symbols[partner]), _NO_RANK)[0] != rank:
            continue
        symbols[place], symbols[partner] = merged, _GONE
        right[place] = right[partner]
        left[right[partner]] = place
        for at in (left[place], place):
            found = ranks.get((symbols[at], symbols[right[at]]))
            if found:
                heapq.heappush(heap, (*found, at))
    return [symbol for symbol in symbols if symbol >= 0]


class PieceCache(dict[str, list[int]]):
    """Pre-token -> ids, computed when first asked for. A few thousand words make up most of any text.

    Full, it forgets everything: simpler than an order of use, and refilled in a moment.
    """

    def __init__(self, encode_piece: Callable[[str], list[int]], capacity: int = _CACHED_PIECES) -> None:
        super().__init__()
        self._encode_piece = encode_piece
        self._capacity = capacity

    def __missing__(self, piece: str) -> list[int]:
        ids = self._encode_piece(piece)
        if len(piece) <= _CACHED_LENGTH:
            if len(self) >= self._capacity:
                self.clear()
            self[piece] = ids
        return ids
