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

LOWER = 0xFFFFFFFF  # the bits of a sorted key that hold a place


def kernel(function: Callable[..., Any]) -> Any:
    """Compile on first use, keep the machine code. Unwrapped: Numba cannot compile a test's type check."""
    return njit(cache=True, error_model="numpy")(inspect.unwrap(function))


@kernel
def sort_places(stream, symbols, ends):
    """Fill `ends` with all places of a stream in the order of the token there, a counting sort.

    Returns where those of each token start: int32 [symbols + 1].
    """
    starts = np.zeros(symbols + 1, np.int32)
    for token in stream:
        starts[token + 1] += 1
    for token in range(symbols):
        starts[token + 1] += starts[token]
    cursor = starts.copy()
    for place in range(len(stream)):
        token = stream[place]
        ends[cursor[token]] = place
        cursor[token] += 1
    return starts


@kernel
def look_ahead(text, ends):
    """Replace each place where an n-gram ends by the next one, with the token there in the upper 32 bits."""
    for i in range(len(ends)):
        place = (ends[i] & LOWER) + 1
        ends[i] = np.int64(text[place, 0]) << 32 | place


@kernel
def sort_followers(ends, starts):
    """Sort what follows each history, which is ends[starts[h]] .. ends[starts[h + 1] - 1], by its token."""
    for history in range(len(starts) - 1):
        if starts[history + 1] - starts[history] > 1:
            sort(ends[starts[history] : starts[history + 1]])


@kernel
def number(ends, starts, begin, highest, token, first):
    """One new node for each history and token that follows it. Returns where the ends of each start: int32 [nodes + 1].

    Fills in the token of each new node, and for each history where, from `highest` on, the followers of the next one
    begin. What ends before a begin symbol has no follower; `ends` moves up in place.
    """
    new_starts = np.empty(len(ends) + 1, np.int32)
    filled, nodes = 0, 0
    for history in range(len(starts) - 1):
        before = nodes
        for i in range(starts[history], starts[history + 1]):
            following = ends[i] >> 32
            if following == begin:  # the last in order
                break
            if nodes == before or following != token[nodes - 1]:
                token[nodes], new_starts[nodes] = following, filled
                nodes += 1
            ends[filled] = ends[i]
            filled += 1
        first[history] = highest + nodes
    new_starts[nodes] = filled
    return new_starts[: nodes + 1]


@kernel
def link(text, ends, starts, lowest, suffix):
    """Give each new node its suffix, which `text` has where the n-gram ends, and each of these places the new node."""
    for node in range(len(starts) - 1):
        suffix[node] = text[ends[starts[node]] & LOWER, 1]
        for i in range(starts[node], starts[node + 1]):
            text[ends[i] & LOWER, 1] = lowest + node


@kernel
def sort(keys):
    """Sort in place. Most histories of longer n-grams are followed a few times only: by insertion, then."""
    if len(keys) > 32:
        keys.sort()
        return
    for i in range(1, len(keys)):
        key = keys[i]
        j = i
        while j > 0 and keys[j - 1] > key:
            keys[j] = keys[j - 1]
            j -= 1
        keys[j] = key


@kernel
def count_suffixes(suffix, first_of_two, neighbours):
    """Count each node's distinct left neighbours: the n-grams, from those of two tokens on, that end with it."""
    for node in range(first_of_two, len(suffix)):
        neighbours[suffix[node]] += 1


@kernel
def interpolate(first, suffix, count, lowest, highest, discount, prob, backoff):
    """Fill in P of every follower of the histories lowest .. highest - 1, and what these leave to the order below.

    discount: of n-grams with adjusted count 0, 1, 2, and 3 or more. prob of all shorter n-grams is there already.
    """
    for node in range(first[lowest], first[highest]):
        prob[node] = prob[suffix[node]]
    for history in range(lowest, highest):
        total, freed = 0, 0.0
        for node in range(first[history], first[history + 1]):
            total += count[node]
            freed += discount[min(count[node], 3)]
        backoff[history] = freed / total if total > 0 else 1.0
        for node in range(first[history], first[history + 1]):
            seen = (count[node] - discount[min(count[node], 3)]) / total
            prob[node] = seen + backoff[history] * prob[node]


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
