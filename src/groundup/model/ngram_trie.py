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
    first: Int64[np.ndarray, "offsets"]
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
    first: Int64[np.ndarray, "offsets"]
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

    A radix sort for each length: by the token, which is the same for all lengths, then by the history, whose node is
    known from the length before. Takes some 20 bytes for each token beside what it returns.
    """
    _check_size(max(len(stream), symbols))
    begin = symbols - 1
    by_token = kernels().sort_places(stream, symbols)
    occurrences = np.bincount(stream, minlength=symbols).astype(np.int32)
    by_token = by_token[: len(by_token) - occurrences[begin]]
    occurrences[begin] = 0  # never predicted
    levels = [0, 1, 1 + symbols]
    node = stream + np.int32(1)
    token, suffix = [np.zeros(1, np.int32), np.arange(symbols, dtype=np.int32)], [np.zeros(1 + symbols, np.int32)]
    count, followers = [np.zeros(1, np.int32), occurrences], [np.array([symbols])]
    for _ in range(1, order):
        lowest, highest = levels[-2:]
        places = kernels().sort_by_history(stream, node, by_token, lowest, highest)
        _check_size(highest + len(places))
        node, *level = kernels().number(stream, node, places, lowest, highest)
        for table, part in zip((followers, token, suffix, count), level, strict=True):
            table.append(part)
        levels.append(highest + len(level[1]))
    first = np.cumsum(np.concatenate([[1], *followers]))
    return Counts(np.array(levels), first, *map(np.concatenate, (token, suffix, count)))


def adjust_counts(counts: Counts) -> None:
    """In place: below the highest order the number of distinct left neighbours, where an n-gram can have any."""
    if len(counts.levels) > 3:
        kernels().adjust_counts(counts.count, counts.suffix, int(counts.levels[2]), int(counts.levels[-2]))


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
