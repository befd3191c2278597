"""The loops of `model/ngram.py`: counting n-grams into a trie, discounting them, and walking it. Numba compiles them.

A trie is a handful of arrays, its nodes numbered breadth-first. Node 0 is the root, the empty n-gram; node 1 + t is
the unigram of token t. The followers of node h are the nodes first[h] .. first[h + 1] - 1, in the order of their last
`token`; `suffix` of a node is the node of its n-gram without its oldest token. Nodes of the highest order have no
followers and no entry in `first`. Where a node is looked for, 0 means that there is none.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit


def kernel(function: Callable[..., Any]) -> Any:
    """Compile on first use, keep the machine code. Unwrapped: Numba cannot compile a test's type check."""
    return njit(cache=True, error_model="numpy")(inspect.unwrap(function))


@kernel
def sort_places(stream, symbols):
    """All places of a stream in the order of the token there: int32 [places]. A counting sort, hence stable."""
    cursor = np.zeros(symbols + 1, np.int64)
    for token in stream:
        cursor[token + 1] += 1
    cursor = np.cumsum(cursor)
    places = np.empty(len(stream), np.int32)
    for place in range(len(stream)):
        token = stream[place]
        places[cursor[token]] = place
        cursor[token] += 1
    return places


@kernel
def sort_by_history(stream, node, by_token, lowest, highest):
    """The places where an n-gram ends, in the order of its history and then of its token: int32 [ends].

    node: of the (n-1)-gram that ends at each place, lowest <= node < highest, 0 where there is none. by_token:
    `sort_places` without the begin symbols, which are never predicted. The second pass of a radix sort with two digits.
    """
    cursor = np.zeros(highest - lowest + 1, np.int64)
    for place in by_token:
        if node[place - 1] > 0:
            cursor[node[place - 1] - lowest + 1] += 1
    cursor = np.cumsum(cursor)
    places = np.empty(cursor[-1], np.int32)
    for place in by_token:
        if node[place - 1] > 0:
            history = node[place - 1] - lowest
            places[cursor[history]] = place
            cursor[history] += 1
    return places


@kernel
def number(stream, node, places, lowest, highest):
    """One level of the trie: a node for each distinct n-gram, from `highest` on.

    places: as `sort_by_history` returns them. Returns the node of the n-gram that ends at each place (int32 [places]),
    how many followers each history has (int64 [histories]), and for each new node its token, its suffix and how often
    the n-gram occurs (int32 [nodes] each).
    """
    ends = np.zeros(len(stream), np.int32)
    followers = np.zeros(highest - lowest, np.int64)
    token = np.empty(len(places), np.int32)
    suffix = np.empty(len(places), np.int32)
    count = np.empty(len(places), np.int32)
    new, last_history, last_token = -1, -1, -1
    for place in places:
        if node[place - 1] != last_history or stream[place] != last_token:
            last_history, last_token = node[place - 1], stream[place]
            new += 1
            followers[last_history - lowest] += 1
            token[new], suffix[new], count[new] = last_token, node[place], 0
        count[new] += 1
        ends[place] = highest + new
    return ends, followers, token[: new + 1].copy(), suffix[: new + 1].copy(), count[: new + 1].copy()


@kernel
def adjust_counts(count, suffix, first_of_two, first_of_highest):
    """In place: an n-gram below the highest order counts its distinct left neighbours instead of its occurrences.

    What begins a document has no left neighbour and keeps its count. first_of_two: the first node of a bigram.
    """
    neighbours = np.zeros(first_of_highest, np.int32)
    for node in range(first_of_two, len(suffix)):
        neighbours[suffix[node]] += 1
    for node in range(first_of_highest):
        if neighbours[node] > 0:
            count[node] = neighbours[node]


@kernel
def interpolate(first, suffix, count, lowest, highest, discount, prob, backoff):
    """Fill in P of every follower of the histories lowest .. highest - 1, and what each history leaves to the order below.

    discount: of n-grams with adjusted count 0, 1, 2, and 3 or more. prob of all shorter n-grams is there already.
    """
    for history in range(lowest, highest):
        total, freed = 0, 0.0
        for node in range(first[history], first[history + 1]):
            total += count[node]
            freed += discount[min(count[node], 3)]
        backoff[history] = freed / total if total > 0 else 1.0
        for node in range(first[history], first[history + 1]):
            seen = (count[node] - discount[min(count[node], 3)]) / total
            prob[node] = seen + backoff[history] * prob[suffix[node]]


@kernel
def follow(first, token, history, wanted):
    """The node of `history` followed by the token `wanted`, or 0. A binary search."""
    if history == 0:
        return 1 + wanted
    low, high = first[history], first[history + 1]
    while low < high:
        middle = (low + high) >> 1
        if token[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < first[history + 1] and token[low] == wanted else 0


@kernel
def walk(first, token, suffix, prob, backoff, state, ids, probs):
    """Write P of each token into `probs`; returns the state after the last. A state is the longest history known.

    What no longer history was followed by is looked for after the shorter one, at the price of its backoff.
    """
    for i in range(len(ids)):
        left = 1.0
        node = follow(first, token, state, ids[i])
        while node == 0:
            left *= backoff[state]
            state = suffix[state]
            node = follow(first, token, state, ids[i])
        probs[i] = left * prob[node]
        state = node if node < len(backoff) else suffix[node]
    return state


@kernel
def best_followers(first, token, prob, histories, begin):
    """The most probable follower of each history, 0 where it has none: int32 [histories]. Never the begin symbol."""
    best = np.zeros(histories, np.int32)
    for history in range(histories):
        for node in range(first[history], first[history + 1]):
            if token[node] != begin and (best[history] == 0 or prob[node] > prob[best[history]]):
                best[history] = node
    return best


@kernel
def most_probable(suffix, prob, backoff, best, state):
    """The node of the most probable token after a state, under the longest history that was followed by it.

    What is most probable after h either followed h, or is most probable after the suffix of h: as backing off scales
    all tokens alike, one candidate for each suffix is enough.
    """
    found, highest, left = 0, 0.0, 1.0
    while True:
        if best[state] > 0 and left * prob[best[state]] > highest:
            found, highest = best[state], left * prob[best[state]]
        if state == 0:
            return found
        left *= backoff[state]
        state = suffix[state]


@kernel
def continue_greedily(first, token, suffix, prob, backoff, best, state, ids):
    """Fill `ids` with the most probable token after each other, from a state on."""
    for i in range(len(ids)):
        ids[i] = token[most_probable(suffix, prob, backoff, best, state)]
        node = follow(first, token, state, ids[i])
        while node == 0:
            state = suffix[state]
            node = follow(first, token, state, ids[i])
        state = node if node < len(backoff) else suffix[node]


@kernel
def find_suffixes(first, token, histories):
    """The suffix of every node, from the shape of the trie alone; -1 for one that has no node: int32 [nodes]."""
    suffix = np.zeros(len(token), np.int32)
    for history in range(1, histories):
        for node in range(first[history], first[history + 1]):
            shorter = suffix[history]
            found = follow(first, token, shorter, token[node]) if shorter >= 0 else 0
            suffix[node] = found if found > 0 else -1
    return suffix
