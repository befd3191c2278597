"""Interpolated modified Kneser-Ney: the n-gram language model that a neural one has to beat."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int32, Integer

from groundup.model.ngram_files import read_trie, write_trie
from groundup.model.ngram_trie import Trie, adjust_counts, count_ngrams, interpolate

Tokens = Sequence[int] | np.ndarray

# lmplz's fallback when counts of counts say nothing, as in tiny or artificial text.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
NOT_FITTED = "KneserNey: no counts yet; call fit(documents) first"


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
        if vocab_size >= 2**31 - 1:
            raise ValueError(f"KneserNey: vocab_size={vocab_size}; expected less than {2**31 - 1}")
        self.order = order
        self.vocab_size = vocab_size
        self._trie: Trie | None = None
        self._discounts: list[tuple[float, float, float]] = []

    @classmethod
    def of(cls, trie: Trie, discounts: Sequence[tuple[float, float, float]] = ()) -> "KneserNey":
        """The model that a trie holds, as read from a file."""
        model = cls(trie.order, vocab_size=trie.symbols - 1)
        model._trie, model._discounts = trie, list(discounts)
        return model

    def fit(self, documents: Iterable[Tokens]) -> "KneserNey":
        """Count and estimate. Takes about 30 bytes per token, and up to 36 for each different n-gram (28 stay)."""
        stream = self._join(documents)
        if (stream == self.vocab_size).all():
            raise ValueError("KneserNey.fit: the documents hold no token; expected at least one")
        counts = count_ngrams(stream, self.vocab_size + 1, self.order)
        adjust_counts(counts)
        level = np.split(counts.count, counts.levels[1:-1])[1:]
        self._discounts = [estimate_discounts(adjusted) for adjusted in level]
        self._trie = interpolate(counts, np.array(self._discounts))
        return self

    def log2_probs(self, ids: Tokens) -> Float64[np.ndarray, "tokens"]:
        """log2 P of each token of one document given all before it, its end_of_text included."""
        _, probs = self.trie.walk(self.trie.start, self._checked(ids))
        return np.log2(probs)

    def perplexity(self, ids: Tokens) -> float:
        """2 to the mean of -log2 P over one document's tokens."""
        bits = -self.log2_probs(ids)
        if not len(bits):
            raise ValueError("KneserNey.perplexity: a document without tokens; expected at least one")
        return float(2 ** bits.mean())

    def distribution(self, history: Tokens) -> Float64[np.ndarray, "vocab"]:
        """P(w | history) of every token w, for a history that reaches back to its document's start."""
        return self.trie.distribution(self._state(history))

    def draft(self, history: Tokens, k: int) -> Int32[np.ndarray, "k"]:
        """The k most probable tokens after a history, each given those before: guesses for another model to verify.

        Exactly the argmax of `distribution` at each step; of equals, any. The history as there.
        """
        if k < 0:
            raise ValueError(f"KneserNey.draft: k={k}; expected at least 0")
        return self.trie.continue_greedily(self._state(history), k)

    @property
    def discounts(self) -> list[tuple[float, float, float]]:
        """(D_1, D_2, D_3+) of each order, unigrams first; empty for a model read from an ARPA file, which has none."""
        if self._trie is None:
            raise ValueError(NOT_FITTED)
        return list(self._discounts)

    @property
    def trie(self) -> Trie:
        """The fitted n-grams and their probabilities. ValueError before `fit`."""
        if self._trie is None:
            raise ValueError(NOT_FITTED)
        return self._trie

    def save(self, path: str | Path) -> None:
        """Write a safetensors file that `load` reads: the same numbers to the last bit."""
        write_trie(path, self.trie, self._discounts)

    @classmethod
    def load(cls, path: str | Path) -> "KneserNey":
        """Read what `save` wrote. ValueError, naming file and fault, for what is no such file or was changed."""
        return cls.of(*read_trie(path))

    def _state(self, history: Tokens) -> int:
        """The longest known history that what lies before a token ends with. Only the last order - 1 tokens matter."""
        reach = self.order - 1
        recent = self._checked(history[-reach:] if reach else history[:0])
        state, _ = self.trie.walk(self.trie.start if len(recent) < reach else 0, recent)
        return state

    def _join(self, documents: Iterable[Tokens]) -> Int32[np.ndarray, "places"]:
        """All documents in a row, each after one begin symbol."""
        arrays = [self._checked(document) for document in documents]
        lengths = np.array([len(a) + 1 for a in arrays], dtype=np.int64)
        stream = np.full(int(lengths.sum()), self.vocab_size, dtype=np.int32)
        first = np.cumsum(lengths) - lengths
        for start, array in zip(first.tolist(), arrays, strict=True):
            stream[start + 1 : start + 1 + len(array)] = array
        return stream

    def _checked(self, ids: Tokens) -> Int32[np.ndarray, "tokens"]:
        """Token ids as int32, after a look at all of them: what walks the trie does not look."""
        array = np.asarray(ids)
        if array.ndim != 1:
            raise ValueError(f"KneserNey: a document of shape {array.shape}; expected a sequence of token ids")
        if not len(array):
            return np.zeros(0, np.int32)
        if array.dtype.kind not in "iu":
            raise ValueError(f"KneserNey: token ids of type {array.dtype}; expected integers")
        for id in (int(array.min()), int(array.max())):
            if not 0 <= id < self.vocab_size:
                raise ValueError(f"KneserNey: token id {id}; expected 0 to {self.vocab_size - 1}")
        return np.ascontiguousarray(array, dtype=np.int32)


def text_scorer(model: KneserNey, encode: Callable[[str], Tokens]) -> Callable[[str], float]:
    """A function from a document's text to its bits per UTF-8 byte under the model: what a data filter compares.

    `encode` is the tokenizer's, with or without an end_of_text at the end. Text like what the model was fitted on
    scores low; noise, other languages and lists of words score high; text that repeats itself or the training set
    scores suspiciously low. An empty text scores 0. CCNet filters web text this way, by perplexity (Wenzek et al. 2019,
    arXiv:1911.00359); bits per byte do not depend on how the tokenizer cuts.
    """

    def score(text: str) -> float:
        size = len(text.encode())
        return -float(model.log2_probs(encode(text)).sum()) / size if size else 0.0

    return score


def estimate_discounts(counts: Integer[np.ndarray, "_"]) -> tuple[float, float, float]:
    """(D_1, D_2, D_3+) from the counts of counts n_1 .. n_4, each in (0, k] or all three the fallback.

    The estimator needs n_1 to n_3 above zero; tiny or artificial text has gaps there. As a discount of zero
    would leave no mass for what was never seen, such an order takes 0.5, 1 and 1.5, as lmplz can.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == k)) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
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
