"""Shannon's two ways to the entropy of a text, on sources whose entropy is known."""

import math

import numpy as np
import pytest

from groundup.evaluation.entropy import (
    ALPHABET,
    SHANNON,
    block_entropies,
    guess,
    guess_rank,
    rank_bounds,
    to_letters,
)

# A chain over three symbols, its stationary distribution, and its entropy rate.
CHAIN = np.array([[0.8, 0.15, 0.05], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]])
STATIONARY = np.linalg.matrix_power(CHAIN, 200)[0]
RATE = float(-(STATIONARY[:, None] * CHAIN * np.log2(CHAIN)).sum())


@pytest.fixture(scope="module")
def sequence():
    rng, symbols = np.random.default_rng(0), [0]
    for x in rng.random(40_000):
        symbols.append(int(np.searchsorted(CHAIN[symbols[-1]].cumsum(), x)))
    return np.array(symbols, dtype=np.int64)


def ideal(before):
    return CHAIN[before[-1]] if len(before) else STATIONARY


def test_letters_by_hand():
    assert "".join(ALPHABET[i] for i in to_letters("  The\n\nNaïve — 3rd 'q'")) == "the naive rd q"
    assert to_letters("Az b").tolist() == [1, 26, 0, 2]
    assert len(to_letters("123")) == 0


def test_block_entropies_by_hand():
    """abab...: the letters are even, and after one of them the next is certain. Of aab, seen once, likewise."""
    f1, f2, f3 = block_entropies([0, 1] * 50, 3)
    assert f1 == pytest.approx(1.0) and f2 == pytest.approx(0.0, abs=1e-12) and f3 == pytest.approx(0.0, abs=1e-12)
    assert block_entropies([0, 0, 0, 1], 1) == [pytest.approx(2 - 0.75 * math.log2(3))]
    # Pairs 00 00 01 after contexts 0 0 0: one next symbol of three is another.
    assert block_entropies([0, 0, 0, 1], 2)[1] == pytest.approx(math.log2(3) - 2 / 3)


def test_block_entropies_of_a_chain_fall_to_its_rate(sequence):
    f1, f2, f3 = block_entropies(sequence, 3, alphabet=3)
    assert f1 == pytest.approx(float(-(STATIONARY * np.log2(STATIONARY)).sum()), abs=0.01) and f1 > RATE + 0.1
    assert f2 == pytest.approx(RATE, abs=0.01) and f3 == pytest.approx(RATE, abs=0.01)


def test_long_blocks_of_a_short_text_look_certain(sequence):
    """The bias: a fair coin has one bit, and 200 throws say far less of it once blocks are long."""
    coin = np.random.default_rng(1).integers(0, 2, 200)
    entropies = block_entropies(coin, 13)
    assert entropies[0] > 0.99 and entropies[12] < 0.1


def test_ranks_by_hand():
    p = np.array([0.2, 0.5, 0.2, 0.1])
    assert [guess_rank(p, i) for i in range(4)] == [2, 1, 3, 4]


def test_bounds_by_hand():
    """q = 1/2, 1/4, 1/4: lower 1/4 * 1 * log 1 + 0 + 3/4 log 3; upper 1.5 bits."""
    lower, upper = rank_bounds([1, 1, 2, 3])
    assert lower == pytest.approx(0.75 * math.log2(3)) and upper == pytest.approx(1.5)
    assert rank_bounds([1, 1, 1]) == (0.0, 0.0)
    assert rank_bounds([3, 3, 1, 2]) == rank_bounds([1, 1, 2, 3])  # falling order
    for alphabet in (2, 27):  # nothing is known: both are the logarithm of the alphabet
        assert rank_bounds(range(1, alphabet + 1)) == (pytest.approx(math.log2(alphabet)),) * 2


def test_bounds_hold_the_rate_of_a_chain_for_an_ideal_guesser(sequence):
    lower, upper = rank_bounds(guess(ideal, sequence, 20_000))
    assert lower < RATE < upper
    # And exactly, from the chain itself: the share of each rank.
    q = (STATIONARY[:, None] * -np.sort(-CHAIN, 1)).sum(0)
    assert upper == pytest.approx(float(-(q * np.log2(q)).sum()), abs=0.02)


def test_the_lower_bound_is_not_one_for_a_guesser_who_knows_nothing(sequence):
    def reversed_order(before):
        return -ideal(before)

    def fixed(before):
        return np.array([1.0, 1.0, 1.0])

    lower, upper = rank_bounds(guess(fixed, sequence, 20_000))
    assert lower > RATE and upper >= lower  # the frequencies alone
    assert rank_bounds(guess(reversed_order, sequence, 20_000)).upper > RATE


@pytest.mark.parametrize("seed", range(5))
def test_the_bounds_never_cross(seed):
    ranks = np.random.default_rng(seed).integers(1, 28, 50)
    lower, upper = rank_bounds(ranks)
    assert 0 <= lower <= upper + 1e-12 <= math.log2(27) + 1e-9


def test_reference_figures():
    assert SHANNON["F0"] == pytest.approx(math.log2(27), abs=0.006)


def test_what_is_refused():
    with pytest.raises(ValueError, match="blocks of 14"):
        block_entropies([0] * 50, 14)
    with pytest.raises(ValueError, match="blocks of 3 in 2 symbols"):
        block_entropies([0, 1], 3)
    with pytest.raises(ValueError, match="at least one, counted from 1"):
        rank_bounds([])
    with pytest.raises(ValueError, match="counted from 1"):
        rank_bounds([0, 1])
