"""Interpolated modified Kneser-Ney: the n-gram language model that a neural one has to beat."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer

Tokens = Sequence[int] | np.ndarray
Places = Int64[np.ndarray, "place"]
Grams = Int64[np.ndarray, "grams"]

# lmplz's fallback when counts of counts say nothing, as in tiny or artificial text.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


@dataclass(frozen=True)
class _Order:
    """The n-grams of one length n. A history is the id that its (n-1)-gram has in the order below.

    `keys` are the sorted history * symbols + token of every n-gram seen; its place there is its id.
    `mass` is max(a - D(a), 0) / (sum of a over the history); `kept[history]` is gamma, the mass that
    interpolation hands to the order below, and 1 for a history that nothing followed. Both have one more
    entry at the end, which the id -1 reaches: an n-gram never seen has mass 0, such a history keeps 1.
    """

    keys: Int64[np.ndarray, "grams"]
    mass: Float64[np.ndarray, "grams+1"]
    kept: Float64[np.ndarray, "histories"]
    discounts: tuple[float, float, float]


class KneserNey:
    r"""Interpolated modified Kneser-Ney over token ids 0 .. vocab_size - 1.

    With h a history of n - 1 tokens and h' the same without its oldest token,

        P(w | h) = max(a(h w) - D(a(h w)), 0) / a(h .) + gamma(h) P(w | h'),
        gamma(h) = (D_1 N_1(h .) + D_2 N_2(h .) + D_3+ N_3+(h .)) / a(h .),

    down to the uniform 1 / vocab_size below the unigrams. The adjusted count a is the plain count at the
    highest order and the number of distinct left neighbours below it. Per order, with n_k the number of
    n-grams with a = k and Y = n_1 / (n_1 + 2 n_2): D_k = k - (k + 1) Y n_{k+1} / n_k for k = 1, 2, 3+.

    A document begins with one begin symbol, which is never predicted; n-grams that start with it have no
    left neighbours, so they keep their plain counts, as in KenLM. There is no hidden end symbol: whoever
    wants the end of a document predicted ends it with the vocabulary's own end_of_text.

    Chen & Goodman 1998 (TR-10-98), section 3 and eq. 26; Heafield et al. 2013 for the begin symbol.
    """

    def __init__(self, order: int = 5, *, vocab_size: int) -> None:
        if order < 1:
            raise ValueError(f"KneserNey: order={order}; expected at least 1")
        if vocab_size < 1:
            raise ValueError(f"KneserNey: vocab_size={vocab_size}; expected at least 1")
        self.order = order
        self.vocab_size = vocab_size
        self._symbols = vocab_size + 1  # the begin symbol comes last
        self._orders: list[_Order] = []

    def fit(self, documents: Iterable[Tokens]) -> "KneserNey":
        """Count and estimate: one sort of the tokens per order, about 60 bytes per token and order."""
        stream, offset = self._join(documents)
        if not offset.any():
            raise ValueError("KneserNey.fit: the documents hold no token; expected at least one")
        ids = [np.zeros_like(stream)]  # of the n-gram that ends at each place, for n = 0, 1, ..., order
        keys, counts, last = [], [], []
        for n in range(1, self.order + 1):
            table, numbers, count, places = self._number(stream, ids[-1], offset, n)
            keys.append(table)
            ids.append(numbers)
            counts.append(count)
            last.append(places)
        self._orders = [self._estimate(n, keys, counts, ids, last, offset == n - 1) for n in range(1, self.order + 1)]
        return self

    def log2_probs(self, ids: Tokens) -> Float64[np.ndarray, "tokens"]:
        """log2 P of each token of one document given all before it, its end_of_text included."""
        stream, offset = self._join([ids])
        return np.log2(self._walk(stream, offset)[1:])

    def distribution(self, history: Tokens) -> Float64[np.ndarray, "vocab"]:
        """P(w | history) of every token w, for a history that reaches back to its document's start."""
        stream, _ = self._join([history])
        stream = stream[-(self.order - 1) :] if self.order > 1 else stream[:0]
        p = np.full(self.vocab_size, 1 / self.vocab_size)
        words = np.arange(self.vocab_size)
        for n, table in enumerate(self._fitted()[: len(stream) + 1], 1):
            past = np.full(self.vocab_size, self._find(stream[len(stream) - n + 1 :]))
            p = self._interpolate(table, past, self._look_up(table, past, words), p)
        return p

    @property
    def discounts(self) -> list[tuple[float, float, float]]:
        """(D_1, D_2, D_3+) of each order, unigrams first."""
        return [order.discounts for order in self._fitted()]

    def _fitted(self) -> list[_Order]:
        if not self._orders:
            raise ValueError("KneserNey: no counts yet; call fit(documents) first")
        return self._orders

    def _join(self, documents: Iterable[Tokens]) -> tuple[Places, Places]:
        """All documents in a row, each after one begin symbol, and every place's offset from that symbol."""
        arrays = [np.asarray(document) for document in documents]
        if wrong := [a.shape for a in arrays if a.ndim != 1]:
            raise ValueError(f"KneserNey: a document of shape {wrong[0]}; expected a sequence of token ids")
        lengths = np.array([len(a) + 1 for a in arrays], dtype=np.int64)
        stream = np.full(int(lengths.sum()), self.vocab_size, dtype=np.int64)
        first = np.cumsum(lengths) - lengths
        is_token = np.ones(len(stream), dtype=bool)
        is_token[first] = False
        if is_token.any():
            stream[is_token] = self._checked(np.concatenate([a for a in arrays if len(a)]))
        return stream, np.arange(len(stream)) - np.repeat(first, lengths)

    def _checked(self, tokens: np.ndarray) -> Integer[np.ndarray, "tokens"]:
        if tokens.dtype.kind not in "iu":
            raise ValueError(f"KneserNey: token ids of type {tokens.dtype}; expected integers")
        for id in (int(tokens.min()), int(tokens.max())):
            if not 0 <= id < self.vocab_size:
                raise ValueError(f"KneserNey: token id {id}; expected 0 to {self.vocab_size - 1}")
        return tokens

    def _number(
        self, stream: Places, prefix_ids: Places, offset: Places, n: int
    ) -> tuple[Grams, Places, Grams, Int64[np.ndarray, "_"]]:
        """Number the distinct n-grams: sorted keys, id at each place (-1: none), counts, a place of each."""
        places = np.flatnonzero(offset >= max(n - 1, 1))
        if n == 1:
            # Ids of unigrams are the tokens themselves, so that the begin symbol can stand in a history.
            counts = np.bincount(stream[places], minlength=self._symbols)
            return np.arange(self._symbols), stream, counts, np.zeros(0, dtype=np.int64)
        assert prefix_ids.max() < np.iinfo(np.int64).max // self._symbols, "n-gram keys overflow 64 bits"
        packed = prefix_ids[places - 1] * self._symbols + stream[places]
        by_key = np.argsort(packed)
        packed = packed[by_key]
        is_first = np.append(True, packed[1:] != packed[:-1]) if len(packed) else np.zeros(0, dtype=bool)
        starts = np.flatnonzero(is_first)
        ids = np.full(len(stream), -1, dtype=np.int64)
        ids[places[by_key]] = np.cumsum(is_first) - 1
        counts = np.diff(np.append(starts, len(packed)))
        return packed[starts], ids, counts, places[by_key[starts]]

    def _estimate(
        self,
        n: int,
        keys: list[np.ndarray],
        counts: list[np.ndarray],
        ids: list[np.ndarray],
        last: list[np.ndarray],
        starts: Bool[np.ndarray, "place"],
    ) -> _Order:
        """Discounted masses of the n-grams, from plain counts or from the number of left neighbours."""
        table, adjusted = keys[n - 1], counts[n - 1]
        if n < self.order:
            plain = adjusted
            adjusted = np.bincount(ids[n][last[n]], minlength=len(table))
            begins = ids[n][starts] if n > 1 else ids[n][:0]
            adjusted[begins] = plain[begins]
        discounts = estimate_discounts(adjusted)
        discount = np.array([0.0, *discounts])[np.minimum(adjusted, 3)]
        history = table // self._symbols
        size = 1 if n == 1 else len(keys[n - 2])
        total = np.bincount(history, adjusted, size)
        freed = np.bincount(history, discount, size)
        kept = np.divide(freed, total, out=np.ones(size), where=total > 0)
        mass = (adjusted - discount) / np.maximum(total, 1)[history]
        return _Order(table, np.append(mass, 0.0), np.append(kept, 1.0), discounts)

    def _walk(self, stream: Places, offset: Places) -> Float64[np.ndarray, "place"]:
        """P of every place of the stream: from the uniform up, each order mixes itself into the one below."""
        p = np.full(len(stream), 1 / self.vocab_size)
        past = np.zeros(len(stream), dtype=np.int64)  # id of the history before each place, -1 when never seen
        for n, table in enumerate(self._fitted(), 1):
            ends = np.flatnonzero(offset >= n - 1)
            ids = np.full(len(stream), -1, dtype=np.int64)
            ids[ends] = self._look_up(table, past[ends], stream[ends])
            p[ends] = self._interpolate(table, past[ends], ids[ends], p[ends])
            past = np.append(-1, ids[:-1])
        return p

    def _find(self, gram: Places) -> int:
        """The id of one n-gram in its order's table; -1 when it was never seen."""
        id = np.zeros(1, dtype=np.int64)
        for table, token in zip(self._orders, gram, strict=False):
            id = self._look_up(table, id, np.array([token]))
        return int(id[0])

    def _look_up(self, table: _Order, history: Places, token: Places) -> Places:
        key = history * self._symbols + token
        at = np.minimum(np.searchsorted(table.keys, key), len(table.keys) - 1)
        seen = (history >= 0) & (table.keys[at] == key) if len(table.keys) else np.zeros(len(key), dtype=bool)
        return np.where(seen, at, -1)

    def _interpolate(
        self, table: _Order, history: Places, id: Places, lower: Float64[np.ndarray, "place"]
    ) -> Float64[np.ndarray, "place"]:
        return table.mass[id] + table.kept[history] * lower


def estimate_discounts(counts: Grams) -> tuple[float, float, float]:
    """(D_1, D_2, D_3+) from the counts of counts n_1 .. n_4, each in (0, k] or all three the fallback.

    The estimator needs n_1 to n_4 above zero; tiny or artificial text has gaps there. As a discount of zero
    would leave no mass for what was never seen, such an order takes 0.5, 1 and 1.5, as lmplz can.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == k)) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return FALLBACK_DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    d1, d2, d3 = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
    return (d1, d2, d3) if 0 < d1 <= 1 and 0 < d2 <= 2 and 0 < d3 <= 3 else FALLBACK_DISCOUNTS


def split_documents(ids: Integer[np.ndarray, "tokens"], end_of_text: int) -> Iterator[Integer[np.ndarray, "_"]]:
    """Cut a token stream after every end_of_text, which stays the last token of its document."""
    start = 0
    for end in (np.flatnonzero(np.asarray(ids) == end_of_text) + 1).tolist():
        yield ids[start:end]
        start = end
    if start < len(ids):
        yield ids[start:]
