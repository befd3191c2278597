"""The scanners against the `regex` module, also where a text is cut into chunks."""

import itertools
from functools import cache

import numpy as np
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from groundup.tokenizer.fast import context as at
from groundup.tokenizer.fast import objects
from groundup.tokenizer.fast.front import SCANNERS, Context, Splitter
from groundup.tokenizer.pretokenize import PATTERNS, Pretokenizer
from tests.thorough import times
from tests.tokenizer.awkward import FRAGMENTS as AWKWARD
from tests.tokenizer.fuzzed import fuzzed_strings

# One of each class and of each character that a pattern names, and those of several bytes.
KEY = [*"aZéǄß中ʰ\u03011٣Ⅷ'sTlrev/.-😀\u200d\u017f\u3000\u00a0\t\n\r\0 "]
KEY_TEXT = st.lists(st.sampled_from(KEY), max_size=40).map("".join)
SMALL_STAGE = 64


def pieces_of(pattern: str, text: str, stage: int) -> list[str]:
    """The pieces of a text that is scanned with so small a stage at first."""
    context, data = Context(pattern, stage_bytes=stage), text.encode()
    unit = SCANNERS[pattern][0]
    scan = objects.entry(unit, unit)
    context.read(np.frombuffer(data, np.uint8))
    found, start = [], 0
    while start < len(data):
        if scan(context.address) == at.NEEDS_STAGE:
            context.grow_stage()
            continue
        places = context.kept(at.PLACES)[: context.fields[at.WORDS] + 1].tolist()
        found += [data[start + a : start + b].decode() for a, b in zip(places, places[1:], strict=False)]
        start += places[-1]
    return found


@cache
def splitter(pattern: str) -> Splitter:
    return Splitter(pattern)


@cache
def split_by_regex(pattern: str):
    return Pretokenizer(pattern).split


def decoded(pattern: str, text: str) -> list[str]:
    return [piece.decode() for piece in splitter(pattern).split(text.encode())]


def test_every_published_pattern_has_a_scanner():
    assert set(SCANNERS) == set(PATTERNS)


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=KEY_TEXT)
def test_pieces_are_those_of_the_regular_expression(pattern, text):
    assert decoded(pattern, text) == split_by_regex(pattern)(text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_chunks_change_nothing(pattern):
    texts = [*AWKWARD, *fuzzed_strings(7, 400)]
    text = " ".join(text.encode("utf-8", "replace").decode() for text in texts)
    assert pieces_of(pattern, text, SMALL_STAGE) == Pretokenizer(pattern).split(text)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("unit", ["a", " ", "\n", "\t", "1", "'", "é", "中", "\u0301", "'s", "\r\n", " \n", "a'", "Aa"])
def test_a_text_without_a_place_to_cut(pattern, unit):
    text = unit * 5_000
    assert pieces_of(pattern, text, SMALL_STAGE) == Pretokenizer(pattern).split(text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_length_around_the_words_of_the_maps(pattern):
    for size in (*range(1, 8), *range(55, 75), *range(120, 135)):
        for unit in ("ab ", "é ", "1 ", " 'll", "\u3000x", "   .", "A\u0301"):
            text = (unit * size)[:size]
            assert pieces_of(pattern, text, SMALL_STAGE) == Pretokenizer(pattern).split(text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_bytes_that_are_no_text_are_characters_of_their_own(pattern):
    broken = "a \udcff\udc80b 中\udce4 1".encode("utf-8", "surrogateescape")
    pieces = Splitter(pattern).split(broken)
    assert b"".join(pieces) == broken
    stood_in = "a \uffff\uffffb 中\uffff 1"
    assert [len(piece.decode("utf-8", "surrogateescape")) for piece in pieces] == [
        len(piece) for piece in Pretokenizer(pattern).split(stood_in)
    ]


@pytest.mark.parametrize("pattern", ["cl100k", "o200k"])
def test_all_short_texts_of_the_characters_that_matter(pattern):
    """One after the other without a gap, so that they also lie at every place of the words of the maps."""
    text = "".join(map("".join, itertools.product("Aa中\u0301's! /\n1", repeat=5)))
    assert decoded(pattern, text) == split_by_regex(pattern)(text)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("aBcDE", ["a", "Bc", "DE"]),
        ("ABc", ["ABc"]),
        ("A中B", ["A中", "B"]),  # back to the last letter that may end a word
        ("A中Bc", ["A中Bc"]),
        ("a中A中AB", ["a中", "A中", "AB"]),
        ("A\u0301B", ["A\u0301", "B"]),
        ("1\u0301AB", ["1", "\u0301", "AB"]),
        ("1\u0301ABc", ["1", "\u0301ABc"]),
        ("!\u0301a", ["!\u0301a"]),
        ("!!\u0301a", ["!!\u0301", "a"]),
        (" !\u0301!a", [" !\u0301!", "a"]),
        ("\u0301!\u0301a", ["\u0301", "!\u0301a"]),
        (" \u0301a", [" \u0301a"]),
        ("!!\u0301\n/!\u0301", ["!!\u0301\n/", "!\u0301"]),  # a slash that is taken is no sign before the next
        ("!\u0301\n/!\u0301", ["!\u0301", "\n", "/!\u0301"]),
        ("!/\n//\n/a", ["!/\n//\n/", "a"]),
        ("a/\na\n/b", ["a", "/\n", "a", "\n", "/b"]),
        ("it'store", ["it's", "tore"]),
        ("a's's's", ["a's", "'s's"]),
        ("a'LLL", ["a'LL", "L"]),
        ("a's中Ab", ["a's", "中Ab"]),  # what a contraction takes is not before the letters behind it
        ("a's\u0301b", ["a's", "\u0301b"]),
        ("a\u0301'\u017f1", ["a\u0301'\u017f", "1"]),
        ("1's", ["1", "'s"]),
        ("!\u0301's", ["!\u0301's"]),
        ("!!\u0301's", ["!!\u0301'", "s"]),
    ],
)
def test_words_of_gpt4o(text, pieces):
    assert decoded("o200k", text) == pieces
    for offset in range(1, 66):
        assert decoded("o200k", "\n" * offset + text)[1:] == pieces


@pytest.mark.parametrize(
    "pieces",
    [
        ["a" + "中" * 100, "A" * 200, "!"],
        ["A" + "中" * 100 + "A" * 200 + "b", "!"],
        ["A" + "中" * 100, "A" * 200, "!"],
        [" !" + "\u0301" * 200, "a"],
        ["!" + "\u0301" * 200 + "a", "!"],
        [" !" + "!\u0301" * 200 + "\n/" * 200, "!\u0301a"],
        ["a" * 200 + "'ll", "a", "Aa"],
    ],
)
def test_long_runs_of_gpt4o(pieces):
    for offset in range(64):
        assert decoded("o200k", "".join(["\n" * (offset + 1), *pieces]))[1:] == pieces


@pytest.mark.slow
def test_a_run_of_letters_ends_where_its_class_does():
    """Every code point between two letters and two digits: what it joins tells its class.

    Of the planes without characters, 4 to 13, and those of private use, 15 and 16, one block of each.
    """
    pattern = Pretokenizer("gpt2")
    planes = [(plane << 16, 16 if plane in (0, 1, 2, 3, 14) else times(1)) for plane in range(17)]
    for first in (start + (block << 12) for start, blocks in planes for block in range(min(blocks, 16))):
        codes = [code for code in range(first, first + (1 << 12)) if not 0xD800 <= code < 0xE000]
        text = "".join(f"a{chr(code)}1{chr(code)}! " for code in codes)
        if text:
            assert decoded("gpt2", text) == pattern.split(text)


def test_contractions_know_the_long_s():
    assert decoded("cl100k", "it'\u017f it'S IT'Re") == regex.findall(PATTERNS["cl100k"], "it'\u017f it'S IT'Re")
