"""The trie of an n-gram model: which n-grams there are, how probable the last token of each is, and what backs off."""

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from jaxtyping import Float64, Int32, Int64

MAX_NODES = 2**31 - 1  # nodes and places are int32


@functools.cache
def kernels() -> ModuleType:
    """The compiled loops. Numba is slow to import, and is only when there is something to count or to look up."""
    return importlib.import_module("groundup.kernels.numba.ngram")


@dataclass(frozen=True)
class Counts:
    """The shape of a trie as `Trie` has it, and how often each n-gram occurs."""

    levels: Int64[np.ndarray, "levels"]
    first: Int32[np.ndarray, "offsets"]
    token: Int32[np.ndarray, "nodes"]
    suffix: Int32[np.ndarray, "nodes"]
    count: Int32[np.ndarray, "nodes"]


@dataclass(frozen=True)
class Trie:
    """An n-gram model in the form of an ARPA file: P(w | h) is `prob` of the node h w where there is one, else
    backoff(h) P(w | h').

    Nodes are numbered breadth-first: the root, then n-grams of one length after the other; those of length n begin at
    levels[n], and levels[-1] counts all. The followers of history h are the nodes first[h] .. first[h + 1] - 1 by
    their last `token`. `suffix`: the node of the n-gram without its oldest token. All tokens follow the root, the begin
    symbol last; prob of the root is the uniform distribution that is interpolated below the unigrams.
    """

    levels: Int64[np.ndarray, "levels"]
    first: Int32[np.ndarray, "offsets"]
    token: Int32[np.ndarray, "nodes"]
    suffix: Int32[np.ndarray, "nodes"]
    prob: Float64[np.ndarray, "nodes"]
    backoff: Float64[np.ndarray, "histories"]

    @property
    def order(self) -> int:
        return len(self.levels) - 2

    @property
    def symbols(self) -> int:
        """The size of the vocabulary, and one for the begin symbol."""
        return int(self.levels[2] - 1)

    @property
    def start(self) -> int:
        """The state before a document's first token: that the begin symbol came before, if the order is above 1."""
        return self.symbols if self.symbols < len(self.backoff) else 0

    @property
    def nbytes(self) -> int:
        arrays = (self.levels, self.first, self.token, self.suffix, self.prob, self.backoff)
        return sum(array.nbytes for array in arrays)

    @functools.cached_property
    def best(self) -> Int32[np.ndarray, "histories"]:
        """The most probable follower of each history."""
        return kernels().best_followers(self.first, self.token, self.prob, len(self.backoff), self.symbols - 1)

    def walk(self, state: int, ids: Int32[np.ndarray, "tokens"]) -> tuple[int, Float64[np.ndarray, "tokens"]]:
        """The state after the tokens, and P of each of them."""
        probs = np.empty(len(ids))
        state = kernels().walk(
            self.first, self.token, self.suffix, self.prob, self.backoff, state, ids, probs
        )  # fmt: skip
        return int(state), probs

    def continue_greedily(self, state: int, k: int) -> Int32[np.ndarray, "k"]:
        """The k most probable tokens, one after the other."""
        ids = np.empty(k, np.int32)
        kernels().continue_greedily(
            self.first, self.token, self.suffix, self.prob, self.backoff, self.best, state, ids
        )  # fmt: skip
        return ids

    def distribution(self, state: int) -> Float64[np.ndarray, "vocab"]:
        """P of every token after a state: from the uniform up, each history scales it and sets what followed."""
        histories = [state]
        while histories[-1]:
            histories.append(int(self.suffix[histories[-1]]))
        p = np.full(self.symbols, self.prob[0])
        for history in reversed(histories):
            followers = slice(int(self.first[history]), int(self.first[history + 1]))
            p *= self.backoff[history]
            p[self.token[followers]] = self.prob[followers]
        return p[:-1]


def count_ngrams(stream: Int32[np.ndarray, "places"], symbols: int, order: int) -> Counts:
    """Count all n-grams up to a length. The begin symbol, which each document of the stream starts with, is the last.

    The places where n-grams end are kept in the order of the n-grams, as a suffix array is: what follows an n-gram is
    then found in one piece, and only has to be sorted by its token.
    """
    _check_size(max(len(stream), symbols))
    most = 1 + symbols + (order - 1) * len(stream)
    first, token, suffix, count = (np.empty(most, np.int32) for _ in range(4))  # pages not written to cost nothing
    ends = np.empty(len(stream), np.int64)
    starts = kernels().sort_places(stream, symbols, ends)
    levels = [0, 1, 1 + symbols]
    first[:2], token[0], suffix[: 1 + symbols], count[0] = levels[1:], 0, 0, 0
    token[1 : 1 + symbols] = np.arange(symbols)
    count[1 : 1 + symbols] = np.diff(starts)
    count[symbols] = 0  # the begin symbol is never predicted
    text = _text(stream, symbols - 1)
    for _ in range(1, order):
        (history, new), ends = levels[-2:], ends[: starts[-1]]
        kernels().look_ahead(text, ends)
        kernels().sort_followers(ends, starts)
        starts = kernels().number(ends, starts, symbols - 1, new, token[new:], first[history + 1 :])
        levels.append(new + len(starts) - 1)
        _check_size(levels[-1] + int(starts[-1]))
        kernels().link(text, ends, starts, new, suffix[new:])
        count[new : levels[-1]] = np.diff(starts)
    nodes = slice(levels[-1])
    return Counts(np.array(levels), first[: levels[-2] + 1], token[nodes], suffix[nodes], count[nodes])


def _text(stream: Int32[np.ndarray, "places"], begin: int) -> Int32[np.ndarray, "ends 2"]:
    """The token at each place, and the node of its unigram; behind them a begin symbol."""
    text = np.full((len(stream) + 1, 2), begin, np.int32)
    text[:-1, 0] = stream
    text[:-1, 1] = stream + 1
    return text


def adjust_counts(counts: Counts) -> None:
    """In place: below the highest order, the number of distinct left neighbours instead of occurrences.

    What begins a document has no left neighbour and keeps its count.
    """
    if len(counts.levels) > 3:
        neighbours = np.zeros(counts.levels[-2], np.int32)
        kernels().count_suffixes(counts.suffix, int(counts.levels[2]), neighbours)
        np.copyto(counts.count[: len(neighbours)], neighbours, where=neighbours > 0)


def interpolate(counts: Counts, discounts: Float64[np.ndarray, "order 3"]) -> Trie:
    """The trie of probabilities: from the uniform up, each order mixes itself into the one below."""
    levels, histories = counts.levels, int(counts.levels[-2])
    prob, backoff = np.empty(len(counts.token)), np.empty(histories)
    prob[0] = 1 / (levels[2] - 2)
    for n, discount in enumerate(discounts):
        kernels().interpolate(
            counts.first, counts.suffix, counts.count, int(levels[n]), int(levels[n + 1]),
            np.array([0.0, *discount]), prob, backoff,
        )  # fmt: skip
    return Trie(levels, counts.first, counts.token, counts.suffix, prob, backoff)


def _check_size(nodes: int) -> None:
    if nodes > MAX_NODES:
        raise ValueError(f"n-grams: {nodes:,} places or n-grams at most; {MAX_NODES:,} can be numbered: take less text")
