"""Decoding by compiled code against joining the bytes of tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.tokenizer import Tokenizer

LONG = b"a token of more than sixteen bytes"
VOCAB = {byte: bytes([byte]) for byte in range(256)} | {256: b"sixteen bytes -!", 257: LONG, 259: b"<|end|>"}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(VOCAB, [], {"<|end|>": 259})


KNOWN = st.lists(st.sampled_from([*range(256), 256, 257, 259]))


@given(ids=KNOWN, kind=st.sampled_from([np.uint16, np.uint32, np.int64, np.int32, np.uint64]))
def test_arrays_decode_as_lists_do(tokenizer, ids, kind):
    expected = b"".join(VOCAB[token] for token in ids)
    assert tokenizer.decode_bytes(ids) == expected
    assert tokenizer.decode_bytes(np.array(ids, kind)) == expected
    assert tokenizer.decode(np.array(ids, kind)) == expected.decode("utf-8", "replace")


def test_long_lists(tokenizer):
    ids = [65, 257, 259, 256] * 100
    expected = b"".join(VOCAB[token] for token in ids)
    assert tokenizer.decode_bytes(ids) == tokenizer.decode_bytes(iter(ids)) == expected
    for wrong in (258, -1, 1 << 70):
        with pytest.raises(ValueError, match=f"id {wrong}: not in the vocabulary"):
            tokenizer.decode_bytes([*ids, wrong])


def test_strided_arrays_and_tensors(tokenizer):
    ids = np.array([104, 0, 257, 0, 256, 0, 105], np.int64)
    expected = b"h" + LONG + VOCAB[256] + b"i"
    assert tokenizer.decode_bytes(ids[::2]) == expected
    assert tokenizer.decode_bytes(torch.tensor(ids[::2].copy())) == expected
    assert tokenizer.decode_bytes(np.empty(0)) == b""


@pytest.mark.parametrize("wrong", [-1, 258, 260, 1 << 20, -(1 << 40), (1 << 62)])
def test_an_id_that_is_none_is_named(tokenizer, wrong):
    for ids in ([65, wrong], np.array([65, wrong])):
        with pytest.raises(ValueError, match=f"id {wrong}: not in the vocabulary"):
            tokenizer.decode_bytes(ids)


@pytest.mark.parametrize("wrong", [np.zeros((2, 2), np.int64), np.zeros(3)])
def test_what_is_no_list_of_ids(tokenizer, wrong):
    with pytest.raises(ValueError, match="expected integers on one axis"):
        tokenizer.decode_bytes(wrong)


@pytest.mark.parametrize("last", [65, 256, 257])
def test_nothing_is_written_behind_the_end(tokenizer, last):
    for kind in (np.uint16, np.uint32):
        for count in (*range(40), *range(1900, 2200, 7)):
            ids = np.array([65] * count + [last], kind)
            assert tokenizer.decode_bytes(ids) == b"A" * count + VOCAB[last]


@pytest.mark.parametrize("before", [0, 3000])
def test_numbers_of_16_bits_beyond_the_vocabulary(tokenizer, before):
    for wrong in (258, 260, 1000, 65_535):
        with pytest.raises(ValueError, match=f"id {wrong}: not in the vocabulary"):
            tokenizer.decode_bytes(np.array([65] * before + [wrong, 65], np.uint16))


def test_a_vocabulary_of_more_than_16_bits():
    words = {256 + number: f" {number}".encode() for number in range(66_000)}
    tokenizer = Tokenizer({byte: bytes([byte]) for byte in range(256)} | words, [])
    ids = np.arange(66_256, dtype=np.uint32)
    expected = [*map(bytes, ([byte] for byte in range(256))), *words.values()]
    assert tokenizer.decode_bytes(ids) == b"".join(expected)
    assert tokenizer.decode_bytes(ids[:65_536].astype(np.uint16)) == b"".join(expected[:65_536])


class Odd:
    """An int to those who ask for one, which does something else meanwhile."""

    def __init__(self, value: int, act) -> None:
        self._value, self._act = value, act

    def __index__(self) -> int:
        self._act()
        return self._value


@pytest.mark.parametrize("changed", [[257] * 300, [65] * 299 + [1 << 20], [65] * 299 + [-1], [65] * 300])
def test_ids_that_are_changed_after_their_size_was_found(tokenizer, changed, monkeypatch):
    ids = np.array([66, 256, 257] * 100)
    decoder = tokenizer._decoder

    def size_then_change(address: int, size=decoder._decoded_size) -> int:
        found = size(address)
        ids[:] = changed
        return found

    monkeypatch.setattr(decoder, "_decoded_size", size_then_change)
    with pytest.raises(RuntimeError, match="changed while they were decoded"):
        decoder.decode(ids)


def test_ids_that_run_code_while_they_are_read(tokenizer):
    inner = []
    ids = [72, Odd(257, lambda: inner.append(tokenizer._decoder.decode_list([256] * 50))), 105]
    assert tokenizer._decoder.decode_list(ids) == b"H" + LONG + b"i"
    assert inner == [VOCAB[256] * 50]


def test_a_list_that_becomes_shorter_while_it_is_read(tokenizer):
    ids: list = [72] * 100
    ids[3] = Odd(257, ids.clear)
    assert tokenizer._decoder.decode_list(ids) is None


def test_what_is_no_id_is_left_to_python(tokenizer, unchecked):
    class Failing:
        def __index__(self) -> int:
            raise RuntimeError("no")

    for wrong in (1.5, "a", None, Failing(), [], -1, 1 << 80, 258):
        assert tokenizer._decoder.decode_list([65, wrong]) is None
    assert tokenizer._decoder.decode_list([]) == b""
    assert tokenizer._decoder.decode_list([True, np.int64(65)]) == b"\x01A"
    with pytest.raises(ValueError, match="id 1.5: not in the vocabulary"):
        tokenizer.decode_bytes([65, 1.5])
