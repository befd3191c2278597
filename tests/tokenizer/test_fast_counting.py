"""Words counted by kernels are those of the readable counter, for every text."""

import random
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.tokenizer.counting import PretokenCounter

pytest.importorskip("llvmlite")

from groundup.tokenizer.fast.counts import TEXT_END, WordTables
from groundup.tokenizer.fast.front import BLOCK_PADDING, SCANNERS
from groundup.tokenizer.fast.merges import words_of
from tests.tokenizer.awkward import texts

SPECIAL_TOKENS = ["<|endoftext|>", "<|end|>", "<|user|>", "<|user|><|user|>", "\u4f60"]


def block_of(data):
    return np.frombuffer(data + b"<" * BLOCK_PADDING, np.uint8)


def count(data, pattern="gpt2", special_tokens=()):
    tables = WordTables(pattern, special_tokens)
    tables.count(block_of(data), len(data))
    return dict(tables.words().items())


def count_readably(parts, pattern="gpt2", special_tokens=()):
    counter = PretokenCounter(pattern, special_tokens)
    for part in parts:
        counter.add([part])
    return counter.counts()


@pytest.mark.parametrize("pattern", SCANNERS)
@given(text=texts)
def test_the_counts_are_those_of_the_readable_counter(pattern, text):
    assert count(text.encode(), pattern, SPECIAL_TOKENS) == count_readably([text], pattern, SPECIAL_TOKENS)


@given(st.lists(texts, max_size=5))
def test_texts_put_together_are_counted_as_if_alone(parts):
    data = TEXT_END.join(part.encode() for part in parts)
    assert count(data, "gpt2", SPECIAL_TOKENS) == count_readably(parts, "gpt2", SPECIAL_TOKENS)


def test_of_special_tokens_the_leftmost_counts_and_of_those_the_longest():
    tokens = ["aa", "aab", "b", "<a>", "<a><b>", "<" * 70]
    for text in ("aaab aaaab", "x<a><b><a>y", "<" * 69, "<" * 70, "<" * 71, "b", "", "aab", "<a>" * 50):
        assert count(text.encode(), "gpt2", tokens) == count_readably([text], "gpt2", tokens), text


def test_words_of_every_length_and_with_zero_bytes_anywhere_are_different_words():
    words = {b"x" * size + b"\0" * zeros + end for size, zeros, end in product(range(40), range(40), (b"", b"x"))}
    words -= {b""}
    tables = WordTables()
    tables.add(words_of({word: number for number, word in enumerate(sorted(words), start=1)}))
    assert dict(tables.words().items()) == {word: number for number, word in enumerate(sorted(words), start=1)}


def test_zero_bytes_in_a_text():
    for text in ("\0", "a\0", "a \0\0\0 b", "\0" * 9, "word\0" * 20, "a" * 15 + "\0", " \0 \0\0 \0\0\0", "\0" * 100):
        assert count(text.encode()) == count_readably([text]), text


def test_tables_grow():
    source = random.Random(1)
    words = Counter(
        {bytes(source.choices(b"abcdefghij\0", k=source.randint(1, 24))): source.randint(1, 9) for _ in range(300_000)}
    )
    tables = WordTables()
    tables.add(words_of(words))
    assert len(tables) == len(words)
    assert dict(tables.words().items()) == words


def test_a_text_of_many_different_words():
    source = random.Random(2)
    text = " ".join("".join(source.choices("abcdefgh", k=source.randint(1, 20))) for _ in range(100_000))
    assert count(text.encode()) == count_readably([text])


def test_one_word_that_is_longer_than_any_stage():
    text = "a" * 1_000_000 + " " + "b" * 300_000
    assert count(text.encode()) == {b"a" * 1_000_000: 1, b" " + b"b" * 300_000: 1}


def test_tables_put_together_hold_the_sums():
    source = random.Random(3)
    total, tables = Counter(), WordTables()
    for _ in range(7):
        part = Counter("".join(source.choices("ab \n", k=3 + source.randint(0, 20))).encode() for _ in range(500))
        total += part
        tables.add(words_of(part))
    assert dict(tables.words().items()) == total


def test_counts_have_64_bits():
    tables = WordTables()
    for _ in range(3):
        tables.add(words_of({b"a": 2**57, b"\0": 2**57, b"nine bytes": 2**57, b"more than sixteen bytes": 2**57}))
    assert set(dict(tables.words().items()).values()) == {3 * 2**57}


def is_utf8(tables, data):
    return tables.is_utf8(block_of(data), len(data))


def decodes(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_all_of_two_bytes_that_are_utf8_are_known():
    tables = WordTables()
    for first, second in product(range(256), range(256)):
        data = bytes([first, second])
        assert is_utf8(tables, data) == decodes(data), data


@given(st.lists(st.sampled_from([0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1,
                                 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF]), max_size=6).map(bytes),
       st.integers(0, 130))  # fmt: skip
def test_utf8_is_what_python_decodes(data, before):
    assert is_utf8(WordTables(), b"a" * before + data) == decodes(data)


@given(st.text(max_size=100), st.integers(0, 400), st.integers(0, 255))
def test_one_wrong_byte_in_a_text_is_seen(text, place, byte):
    data = bytearray(text.encode())
    if data:
        data[place % len(data)] = byte
    assert is_utf8(WordTables(), bytes(data)) == decodes(bytes(data))
