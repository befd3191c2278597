"""How a tokenizer cuts numbers, found by trying: every digit, groups, or as its merges happen to go."""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from groundup.tokenizer.pretokenize import Pretokenizer
from groundup.tokenizer.tokenizer import Tokenizer

MOST_DIGITS, NUMBERS_PER_LENGTH = 7, 200

Cut = tuple[int, ...]  # digits in each piece, from the left
Cuts = Mapping[int, Counter[Cut]]  # digits -> how many of the numbers tried are cut in which way


@dataclass(frozen=True)
class DigitPolicy:
    """How numbers are cut.

    cuts: digits -> the ways in which numbers of so many digits are cut, with its share, the most frequent first.
    pattern: in words, what the pre-tokenization pattern does by itself. verdict: what the tokens then are.
    regular: whether numbers of equally many digits are all cut alike.
    """

    cuts: dict[int, list[tuple[Cut, float]]]
    pattern: str
    verdict: str
    regular: bool


def digit_policy(tokenizer: Tokenizer, seed: int = 0) -> DigitPolicy:
    """How numbers of 1 to 7 digits are cut: all up to two digits, and 200 drawn ones of each greater length.

    Arithmetic is learned more easily where a place in the number is always the same place in a token: regular cuts,
    best from the right (Singh & Strouse 2024, arXiv:2402.14903). Merges alone follow frequency: 1999 may be one token
    and 1983 two.
    """
    draw = random.Random(seed)
    numbers = {digits: _numbers(digits, draw) for digits in range(1, MOST_DIGITS + 1)}
    pattern = _cuts(numbers, Pretokenizer(tokenizer.pattern).split)
    tokens = _cuts(numbers, lambda number: [tokenizer.vocab[token] for token in tokenizer.encode(number)])
    shares = {digits: [(cut, n / found.total()) for cut, n in found.most_common()] for digits, found in tokens.items()}
    return DigitPolicy(shares, in_words(pattern), in_words(tokens), all(len(found) == 1 for found in tokens.values()))


def _numbers(digits: int, draw: random.Random) -> list[str]:
    low, high = 10 ** (digits - 1), 10**digits
    if digits <= 2:
        return [str(number) for number in range(low if digits > 1 else 0, high)]
    return [str(draw.randrange(low, high)) for _ in range(NUMBERS_PER_LENGTH)]


def _cuts(numbers: Mapping[int, list[str]], pieces: Callable[[str], list[str] | list[bytes]]) -> Cuts:
    return {digits: Counter(tuple(map(len, pieces(number))) for number in found) for digits, found in numbers.items()}


def in_words(cuts: Cuts) -> str:
    """The rule that all these cuts obey, or that there is none.

    >>> in_words({1: Counter({(1,): 9}), 2: Counter({(2,): 9}), 3: Counter({(1, 2): 9})})
    'regular: groups of 2 from the right'
    """
    ways, digits = max((len(found), digits) for digits, found in cuts.items())
    if ways > 1:
        first = min(digits for digits, found in cuts.items() if len(found) > 1)
        return f"irregular from {first} digits on: numbers of {digits} digits are cut in {ways} different ways"
    only = {digits: next(iter(found)) for digits, found in cuts.items()}
    if all(cut == (digits,) for digits, cut in only.items()):
        return f"regular: a number of up to {max(only)} digits is one piece"
    for size in range(1, max(only)):
        if all(cut == _grouped(digits, size) for digits, cut in only.items()):
            return "regular: every digit by itself" if size == 1 else f"regular: groups of {size} from the left"
        if all(cut == _grouped(digits, size)[::-1] for digits, cut in only.items()):
            return f"regular: groups of {size} from the right"
    return "regular: the number of digits decides, but not in groups of one size"


def _grouped(digits: int, size: int) -> Cut:
    return (size,) * (digits // size) + ((digits % size,) if digits % size else ())
