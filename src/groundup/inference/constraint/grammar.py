"""What a constrained text may look like, as a small tree: the common form of choices, regular expressions and schemas.

    Characters  one character out of ranges of code points       Series  one part after another
    Repeat      a part, from so often to so often                Options one of several parts
    Call        another rule by its name, itself included

A grammar is rules by name, of which one is the whole text. Without calls it is a regular expression; with calls that
nest it is context-free, which JSON inside JSON needs.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

Ranges = tuple[tuple[int, int], ...]
"""Code points, first and last of each range, in order, apart from each other."""

LAST = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)
"""Code points that no text in UTF-8 has."""
MAX_REPEAT = 1_000
MAX_DEPTH = 32
"""Of groups in groups, and of schemas in schemas."""


@dataclass(frozen=True)
class Characters:
    """Any one character of the ranges; none where there are no ranges."""

    ranges: Ranges


@dataclass(frozen=True)
class Series:
    parts: tuple["Part", ...]


@dataclass(frozen=True)
class Options:
    options: tuple["Part", ...]


@dataclass(frozen=True)
class Repeat:
    """`at_most` None: as often as one likes."""

    part: "Part"
    at_least: int
    at_most: int | None


@dataclass(frozen=True)
class Call:
    rule: str


Part = Characters | Series | Options | Repeat | Call
Grammar = dict[str, Part]

START = ""
"""The name of the rule that is the whole text."""
EMPTY = Series(())


class Budget:
    """The time that compiling may take. `check` is called wherever work can grow, and raises ValueError beyond it.

    Counted in the thread's own processor time: a busy machine refuses no more than an idle one.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.thread_time() + seconds

    def check(self) -> None:
        if time.thread_time() > self._end:
            raise ValueError(f"constraint: too complex, compiling took more than {self._seconds:g} s; simplify it")


def ranges_of(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """The same code points in order, overlapping and adjacent ranges joined, surrogates left out.

    >>> ranges_of([(98, 99), (97, 97), (120, 122)])
    ((97, 99), (120, 122))
    """
    joined: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(high, joined[-1][1])
        elif low <= high:
            joined.append((low, high))
    first, last = SURROGATES
    outside = [part for low, high in joined for part in ((low, min(high, first - 1)), (max(low, last + 1), high))]
    return tuple((low, high) for low, high in outside if low <= high)


def negated(ranges: Ranges) -> Ranges:
    """All other code points."""
    edges = [-1, *(edge for pair in ranges for edge in pair), LAST + 1]
    return ranges_of((high + 1, low - 1) for high, low in zip(edges[::2], edges[1::2], strict=True))


def without(ranges: Ranges, others: Ranges) -> Ranges:
    """The code points of `ranges` that `others` lacks."""
    return negated(ranges_of([*negated(ranges), *others]))


def text(literal: str) -> Part:
    """Exactly this text. ValueError where it cannot be written in UTF-8."""
    if any(SURROGATES[0] <= ord(c) <= SURROGATES[1] for c in literal):
        raise ValueError(f"constraint: {literal!r:.80} has surrogates, which no text contains")
    return Series(tuple(Characters(((ord(c), ord(c)),)) for c in literal))


def optional(part: Part) -> Part:
    return Repeat(part, 0, 1)


def any_of(literals: Iterable[str], prefix: str, grammar: Grammar) -> Part:
    """One of these texts, as a tree of their beginnings: a rule of `grammar` for each place where they part.

    So a thousand texts that begin alike cost one step for each character, and not a thousand.
    """
    branches, ends = _beginnings(literals)
    places = {""} | ends | {beginning for beginning, following in branches.items() if len(following) > 1}
    for place in places:
        onward: list[Part] = [EMPTY] if place in ends else []
        for character in sorted(branches[place]):
            following = place + character
            while following not in places:
                following += next(iter(branches[following]))
            onward.append(Series((text(following[len(place) :]), Call(f"{prefix}/{following}"))))
        grammar[f"{prefix}/{place}"] = Options(tuple(onward))
    return Call(f"{prefix}/")


def none_of(literals: Iterable[str], characters: Ranges, prefix: str, grammar: Grammar) -> Part:
    """Any text of these characters but the given ones: their tree of beginnings, which can be left anywhere."""
    branches, ends = _beginnings(literals)
    rest = Repeat(Characters(characters), 0, None)
    for beginning, following in branches.items():
        others = without(characters, ranges_of((ord(c), ord(c)) for c in following))
        leaving = Series((Characters(others), rest))
        onward = (Series((text(c), Call(f"{prefix}/{beginning}{c}"))) for c in sorted(following))
        options = (*onward, leaving)
        grammar[f"{prefix}/{beginning}"] = Options(options if beginning in ends else (*options, EMPTY))
    return Call(f"{prefix}/")


def _beginnings(literals: Iterable[str]) -> tuple[dict[str, set[str]], set[str]]:
    """Each beginning of a text with the characters that follow it, and the texts themselves."""
    branches: dict[str, set[str]] = {"": set()}
    ends = set(literals)
    for literal in ends:
        for at, character in enumerate(literal):
            branches[literal[:at]].add(character)
            branches.setdefault(literal[: at + 1], set())
    return branches, ends
