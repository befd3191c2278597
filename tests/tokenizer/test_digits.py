import doctest
from collections import Counter

import pytest

from groundup.tokenizer import Tokenizer, digits
from groundup.tokenizer.digits import digit_policy

NUMBERS = " ".join(str(number) for number in range(1000)) * 3


def policy(pattern, vocab_size=260, text=NUMBERS):
    return digit_policy(Tokenizer.train_from_iterator([text], vocab_size, ["<|endoftext|>"], pattern))


def test_examples_in_docstrings():
    assert doctest.testmod(digits).failed == 0


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("gpt2", "regular: a number of up to 7 digits is one piece"),
        ("none", "regular: a number of up to 7 digits is one piece"),
        ("cl100k", "regular: groups of 3 from the left"),
        ("o200k", "regular: groups of 3 from the left"),
        (r"\p{N}{1,2}|\P{N}+", "regular: groups of 2 from the left"),
        (r"\p{N}|\P{N}+", "regular: every digit by itself"),
        (r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|\z))|\P{N}+", "regular: groups of 3 from the right"),
    ],
)
def test_what_a_pattern_does_to_numbers(pattern, words):
    assert policy(pattern).pattern == words


def test_without_merges_of_digits_every_digit_is_a_token():
    found = policy("gpt2", 257, "no numbers")
    assert (found.regular, found.verdict) == (True, "regular: every digit by itself")
    assert found.cuts[7] == [((1,) * 7, 1.0)]
    assert set(found.cuts) == {1, 2, 3, 4, 5, 6, 7}


def merged(pattern, *merges, **options):
    tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]
    return Tokenizer(dict(enumerate(tokens)), merges, pattern=pattern, **options)


DIGITS = [str(digit).encode() for digit in range(10)]
PAIRS = [(left, right) for left in DIGITS for right in DIGITS]
TRIPLES = [(left + right, last) for left, right in PAIRS for last in DIGITS]


def test_with_every_number_of_three_digits_the_pattern_decides():
    """If they are taken whole. By merging, 312 is 3 and 12, since the pair 12 was learned before 31."""
    merges, pattern = (*PAIRS, *TRIPLES), r"\p{N}{1,3}|\P{N}+"
    assert not digit_policy(merged(pattern, *merges)).regular
    found = digit_policy(merged(pattern, *merges, ignore_merges=True))
    assert found.verdict == found.pattern == "regular: groups of 3 from the left"
    assert found.cuts[7] == [((3, 3, 1), 1.0)]


def test_some_merges_cut_numbers_irregularly():
    found = digit_policy(merged("gpt2", (b"1", b"9"), (b"19", b"9"), (b"2", b"0")))
    assert not found.regular
    assert found.verdict.startswith("irregular from 2 digits on: numbers of 7 digits are cut in ")
    assert found.cuts[2] == [((1, 1), 88 / 90), ((2,), 2 / 90)]
    for number, cuts in found.cuts.items():
        shares = [share for _, share in cuts]
        assert sum(shares) == pytest.approx(1)
        assert shares == sorted(shares, reverse=True)
        assert {sum(cut) for cut, _ in cuts} == {number}


def test_regular_cuts_of_no_one_size_are_said_to_be_that():
    cuts = {1: (1,), 2: (2,), 3: (3,), 4: (2, 2), 5: (5,)}
    assert digits.in_words({n: Counter([cut]) for n, cut in cuts.items()}).endswith("not in groups of one size")


def test_the_same_seed_tries_the_same_numbers():
    tokenizer = merged("gpt2", (b"1", b"9"))
    assert digit_policy(tokenizer, 1) == digit_policy(tokenizer, 1) != digit_policy(tokenizer, 2)
