"""The entropy of printed English, as Shannon measured it: by counting blocks of letters, and by guessing the next one.

Shannon 1951, "Prediction and Entropy of Printed English" (Bell System Technical Journal 30, pages 50-64), with an
alphabet of 26 letters and the space. All entropies are in bits per letter.
"""

import math
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64, UInt8

ALPHABET = " abcdefghijklmnopqrstuvwxyz"
LONGEST_BLOCK = 13
"""27^13 blocks still have numbers of 63 bits."""

SHANNON = {"F0": 4.76, "F1": 4.03, "F2": 3.32, "F3": 3.1, "Fword": 2.14}
"""His figures for 27 symbols, from tables of letters, digrams, trigrams and words; without the space Fword is 2.62."""

SHANNON_GUESSING = (0.6, 1.3)
"""His bounds at 100 letters of context, from a person's guesses."""


class Bounds(NamedTuple):
    """lower <= F_N <= upper, of an ideal guesser; see `rank_bounds` for others."""

    lower: float
    upper: float


def to_letters(text: str) -> UInt8[np.ndarray, "letters"]:
    """Places in `ALPHABET`: case and accents fall away, all else is a space, and of several spaces one stays.

    >>> "".join(ALPHABET[i] for i in to_letters("Café -- No. 5!"))
    'cafe no'
    """
    plain = unicodedata.normalize("NFKD", text.lower())
    kept = [c if "a" <= c <= "z" else " " for c in plain if not unicodedata.combining(c)]
    spaced = " ".join("".join(kept).split())
    raw = np.frombuffer(spaced.encode("ascii"), np.uint8)
    return np.where(raw == ord(" "), 0, raw - (ord("a") - 1)).astype(np.uint8)


def block_entropies(symbols: Sequence[int] | np.ndarray, longest: int, alphabet: int = len(ALPHABET)) -> list[float]:
    """[F_1, ..., F_longest], from the frequencies in these very symbols: what a table of blocks says.

    F_N = -sum p(b, j) log2 p(j | b) over blocks b of N - 1 symbols and the symbol j after them. Too small, and ever
    more so as N grows: in a finite text most long blocks occur once, and then their next symbol is certain. Compare
    with a model's score on other text.
    """
    symbols = np.asarray(symbols, dtype=np.int64)
    if not 1 <= longest <= LONGEST_BLOCK or len(symbols) < longest:
        raise ValueError(f"blocks of {longest} in {len(symbols):,} symbols; expected 1 to {LONGEST_BLOCK}, in as many")
    entropies, blocks = [], np.zeros(len(symbols), dtype=np.int64)
    for n in range(1, longest + 1):
        contexts = blocks[: len(symbols) - n + 1]
        blocks = contexts * alphabet + symbols[n - 1 :]
        entropies.append(_entropy(blocks) - _entropy(contexts))
    return entropies


def _entropy(values: Int64[np.ndarray, "_"]) -> float:
    """Of the frequencies of the values."""
    counts = np.unique(values, return_counts=True)[1]
    return float(math.log2(len(values)) - (counts * np.log2(counts)).sum() / len(values))


def guess_rank(p: Float[np.ndarray, "alphabet"], symbol: int) -> int:
    """At which guess a guesser is right who names the most probable symbol first; of equals, the first in `p`."""
    before = np.count_nonzero(p[:symbol] == p[symbol])
    return 1 + int(np.count_nonzero(p > p[symbol])) + int(before)


def rank_bounds(ranks: Sequence[int] | np.ndarray) -> Bounds:
    r"""Bounds of F_N from the ranks of the true symbols, with q_i the share that was right at guess i:

        sum_i i (q_i - q_{i+1}) log2 i <= F_N <= -sum_i q_i log2 q_i.

    Shannon 1951, "Entropy bounds from prediction frequencies". The q are put in falling order, as his are: chance may
    swap rare ones. The upper bound holds for any guesser, since the text can be had back from the ranks; the lower one
    only for an ideal one, who knows the true probabilities: it is too high for others. From n guesses, q is itself an
    estimate, whose entropy is too small by about (distinct ranks - 1) / (2 n ln 2).

    >>> rank_bounds([1, 1, 2, 2])
    Bounds(lower=1.0, upper=1.0)
    """
    ranks = np.asarray(ranks, dtype=np.int64)
    if not len(ranks) or ranks.min() < 1:
        raise ValueError("guess ranks: expected at least one, counted from 1")
    q = np.sort(np.bincount(ranks)[1:] / len(ranks))[::-1]
    places = np.arange(1, len(q) + 1)
    lower = float((places * (q - np.append(q[1:], 0.0)) * np.log2(places)).sum())
    some = q[q > 0]
    return Bounds(lower, abs(float((some * np.log2(some)).sum())))


Guesser = Callable[[Int64[np.ndarray, "before"]], Float[np.ndarray, "alphabet"]]


def guess(predict: Guesser, symbols: Int64[np.ndarray, "_"], guesses: int) -> list[int]:
    """The ranks of the first symbols for a guesser that is given all symbols before each."""
    return [guess_rank(predict(symbols[:i]), int(symbols[i])) for i in range(min(guesses, len(symbols)))]
