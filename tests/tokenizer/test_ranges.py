"""A file cut into ranges has the pre-tokens of the whole, wherever its bytes come from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.tokenizer.counting import PretokenCounter
from groundup.tokenizer.ranges import Cutter
from tests.tokenizer.awkward import FRAGMENTS

SPECIAL_TOKENS = ["<|endoftext|>", "<|two words|>", "a,a", "<|user|>", "<|user|><|user|>", "\u754c\u3002"]
INVALID = [b"\x80", b"\xe4\xbd", b"\xff", b"\xc3", b"\xf0\x9f\x8c", b"\xbd\xa0", b"a\x80,"]
pieces = st.sampled_from([*(fragment.encode() for fragment in [*FRAGMENTS, *SPECIAL_TOKENS]), *INVALID])
files = st.lists(pieces, max_size=40).map(b"".join)


def count(data, pattern, special_tokens):
    counter = PretokenCounter(pattern, special_tokens)
    for part in data:
        counter.add([part.decode("utf-8", "replace")])
    return counter.counts()


def cut(folder, data, step, pattern="gpt2", special_tokens=SPECIAL_TOKENS):
    path = folder / "file"
    path.write_bytes(data)
    ranges = list(Cutter(pattern, special_tokens).ranges(path, step))
    assert [start for start, _ in ranges] == [0, *(end for _, end in ranges[:-1])][: len(ranges)]
    assert (ranges[-1][1] if ranges else 0) == len(data)
    return [data[start:end] for start, end in ranges]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranges")


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "o200k", "none", r"\w+|."])
@given(data=files, step=st.integers(1, 30), window=st.integers(1, 30))
def test_parts_have_the_pretokens_of_the_whole(folder, pattern, data, step, window):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("groundup.tokenizer.ranges._WINDOW", window)
        parts = cut(folder, data, step, pattern)
    assert count(parts, pattern, SPECIAL_TOKENS) == count([data], pattern, SPECIAL_TOKENS)


def test_prose_is_cut_after_words(folder):
    data = b"It is a truth universally acknowledged, that a single man" * 9
    parts = cut(folder, data, 20)
    assert len(parts) > 15 and all(20 <= len(part) < 40 for part in parts[:-1])


def test_a_special_token_is_not_cut(folder):
    data = b"<|two words|>" * 30
    assert {part.count(b"<|two words|>") * 13 - len(part) for part in cut(folder, data, 5)} == {0}


def test_with_no_pattern_only_special_tokens_are_places_to_cut(folder):
    assert cut(folder, b"one two three four", 1, "none") == [b"one two three four"]
    assert cut(folder, b"one<|user|>two three", 1, "none") == [b"one<|user|>", b"two three"]
    assert len(cut(folder, b"one<|user|><|user|><|user|>two", 1, "none")) == 1  # which two are the pair?


def test_nothing_is_cut_where_a_special_token_may_come_from_invalid_bytes(folder):
    assert len(cut(folder, b"one two three four " * 9, 5, "gpt2", ["\ufffd\ufffd"])) == 1


def test_an_empty_file_has_no_ranges(folder):
    assert cut(folder, b"", 10) == []


def test_cutting_one_long_word_takes_time_in_proportion(folder):
    # Each byte is looked at once, although none of the ranges that would begin inside the word does.
    path = folder / "long"
    path.write_bytes(b"a" * 3_000_000)
    reads = []

    class Counting(Cutter):
        def _cut_within(self, data, first, end):
            reads.append(len(data))
            return super()._cut_within(data, first, end)

    assert list(Counting("gpt2", SPECIAL_TOKENS).ranges(path, 1000)) == [(0, 3_000_000)]
    assert sum(reads) < 3_100_000
