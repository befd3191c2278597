import inspect
import itertools

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from groundup.tokenizer import pretokenize
from groundup.tokenizer.pretokenize import (
    PATTERNS,
    PORTABLE_PATTERNS,
    Pretokenizer,
    SpecialSplitter,
    canonical,
    safe_chunks,
    well_formed,
)
from tests.tokenizer.awkward import texts

names = st.sampled_from([*PATTERNS, "none"])


def test_patterns_are_those_that_tiktoken_publishes():
    published = pytest.importorskip("tiktoken_ext.openai_public")
    assert PATTERNS["gpt2"] == published.r50k_pat_str
    assert PATTERNS["cl100k"] in inspect.getsource(published.cl100k_base)
    lines = [f'r"""{part}"""' for part in split_alternatives(PATTERNS["o200k"])]
    assert all(line in inspect.getsource(published.o200k_base) for line in lines)


def split_alternatives(pattern):
    """Cut at the `|` outside parentheses."""
    parts, depth = [""], 0
    for character in pattern:
        depth += (character == "(") - (character == ")")
        if character == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


@pytest.mark.parametrize(
    ("pattern", "text", "pieces"),
    [
        ("gpt2", "I've 2 cats", ["I", "'ve", " 2", " cats"]),
        ("gpt2", "DON'T", ["DON", "'", "T"]),
        ("cl100k", "DON'T", ["DON", "'T"]),
        ("o200k", "DON'T", ["DON'T"]),
        ("gpt2", "12345", ["12345"]),
        ("cl100k", "12345", ["123", "45"]),
        ("o200k", "helloWorld", ["hello", "World"]),
        ("gpt2", "a   b", ["a", "  ", " b"]),
        ("gpt2", "a   ", ["a", "   "]),
        ("cl100k", "x!\n\n y", ["x", "!\n\n", " y"]),
        ("gpt2", "", []),
        ("none", "any text at all", ["any text at all"]),
        ("none", "", []),
    ],
)
def test_pieces_by_hand(pattern, text, pieces):
    assert Pretokenizer(pattern).split(text) == pieces


@given(names, texts)
def test_joined_pieces_are_the_text(name, text):
    pieces = Pretokenizer(name).split(text)
    assert "".join(pieces) == text
    assert all(pieces)


@given(st.sampled_from(list(PATTERNS)), texts)
def test_the_portable_form_splits_alike(name, text):
    assert regex.findall(PORTABLE_PATTERNS[name], text) == Pretokenizer(name).split(text)


@given(names, texts, st.lists(st.integers(0, 60), max_size=6), st.integers(1, 9))
def test_chunks_have_the_pieces_of_the_whole(name, text, cuts, size):
    pretokenizer, specials = (
        Pretokenizer(name),
        SpecialSplitter(["<|endoftext|>", "<|user|>", "<|user|><|user|>"]),
    )
    points = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[start:end] for start, end in itertools.pairwise(points)]

    def pieces(chunk):
        found = ([part] if special else pretokenizer.split(part) for part, special in specials.split(chunk))
        return [piece for group in found for piece in group]

    chunks = list(safe_chunks(parts, pretokenizer, specials, size))
    assert "".join(chunks) == text
    assert [piece for chunk in chunks for piece in pieces(chunk)] == pieces(text)


def test_chunks_are_bounded_in_prose():
    text = "word and word. " * 1000
    parts = (text[i : i + 7] for i in range(0, len(text), 7))
    chunks = list(safe_chunks(parts, Pretokenizer("gpt2"), SpecialSplitter([]), 100))
    assert max(map(len, chunks)) <= 120
    assert len(chunks) > 100


def test_chunks_without_a_pattern_end_at_special_tokens():
    chunks = list(safe_chunks(["ab<e>cd<e>", "ef"], Pretokenizer("none"), SpecialSplitter(["<e>"]), 4))
    assert chunks == ["ab<e>cd<e>", "ef"]


@given(names, texts, st.integers(1, 9))
def test_blocks_have_the_pieces_of_the_whole(name, text, size):
    pretokenizer = Pretokenizer(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretokenize, "_BLOCK", size)
        blocks = list(pretokenizer.blocks(text))
    assert [piece for block in blocks for piece in pretokenizer.split(block)] == pretokenizer.split(text)


def test_specials_all_pairs_longest_match():
    tokens = ["<a>", "<a><b>", "<b>", "<a", "a>", "<a><b><c>"]
    for text in ("".join(pair) for pair in itertools.product([*tokens, "x", "<"], repeat=3)):
        parts, at = [], 0
        while at < len(text):  # the rule, spelled out
            found = max((t for t in tokens if text.startswith(t, at)), key=len, default="")
            parts.append((found or text[at], bool(found)))
            at += len(found) or 1
        merged = []
        for is_special, group in itertools.groupby(parts, key=lambda part: part[1]):
            group_texts = [part for part, _ in group]
            merged += [(t, True) for t in group_texts] if is_special else [("".join(group_texts), False)]
        assert list(SpecialSplitter(tokens).split(text)) == merged


def test_every_surrogate_in_every_place_becomes_the_replacement_character():
    for code in range(0xD800, 0xE000):
        for before, after in itertools.product(("", "a"), repeat=2):
            assert well_formed(before + chr(code) + after) == before + "\ufffd" + after
    assert well_formed("plain 🌍") == "plain 🌍"


def test_names_of_patterns():
    assert canonical(None) == "none"
    assert canonical("gpt4") == "cl100k"
    assert all(canonical(text) == name for name, text in PATTERNS.items())
    with pytest.raises(ValueError, match="did you mean 'gpt2'"):
        canonical("gpt-2")


def test_a_custom_pattern_keeps_what_it_does_not_match():
    assert Pretokenizer(r"[a-z]+").split("ab12cd!") == ["ab", "12", "cd", "!"]
    assert Pretokenizer(r"(a)(b)?").split("abac") == ["ab", "a", "c"]
    assert Pretokenizer(r"x*").split("axxb") == ["a", "xx", "b"]


@pytest.mark.parametrize("pattern", ["(", "[a", r"\p{Nonsense}+", "a{2,1}"])
def test_a_broken_custom_pattern_is_a_value_error(pattern):
    with pytest.raises(ValueError, match="not a regular expression"):
        Pretokenizer(pattern)


@pytest.mark.parametrize("pattern", [r"\d{1,3}+", r"^a", r"a+$", r"[[:alpha:]]+", "a|" * 4000])
def test_a_pattern_that_engines_read_differently_is_refused(pattern):
    with pytest.raises(ValueError, match="pattern"):
        Pretokenizer(pattern)


@pytest.mark.parametrize("pattern", [r"[$^+]+|\$\^", r"[^a-z]|[]^$]", r"\[\$"])
def test_anchors_that_are_plain_characters_are_fine(pattern):
    Pretokenizer(pattern)


def test_a_pattern_that_backtracks_for_ever_is_stopped(monkeypatch):
    monkeypatch.setattr(pretokenize, "_SECONDS", 0.05)
    with pytest.raises(ValueError, match="too slow"):
        Pretokenizer(r"(?:a|aa|b)+(?=c)").split("a" * 60 + "!")


@pytest.mark.parametrize("name", list(PATTERNS))
@pytest.mark.parametrize("unit", [" ", "\n", " \n", "a", "1", "!", "'s", "\r\n", "é", "\u0301", "A", "aA"])
def test_long_runs_do_not_fail(name, unit):
    text = unit * 20_000 + "x"
    assert "".join(Pretokenizer(name).split(text)) == text
