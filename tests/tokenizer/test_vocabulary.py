import pytest

from groundup.tokenizer.vocabulary import (
    MAX_ID,
    check_special_tokens,
    ids_of_bytes,
    ids_of_tokens,
    place_special_tokens,
)

BYTES = {byte: bytes([byte]) for byte in range(256)}


def test_ids_of_tokens_is_the_inverse():
    assert ids_of_tokens({3: b"a", 5: b"bc"}) == {b"a": 3, b"bc": 5}


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        ({0: b"a", 1: b"a"}, "two ids: 0 and 1"),
        ({0: b""}, "id 0: the token is empty"),
        ({-1: b"a"}, "id -1 is outside"),
        ({MAX_ID + 1: b"a"}, "is outside"),
    ],
)
def test_unsound_vocabularies(vocab, message):
    with pytest.raises(ValueError, match=message):
        ids_of_tokens(vocab)


def test_every_byte_needs_a_token():
    ids = {bytes([byte]): byte for byte in range(256)}
    assert ids_of_bytes(ids) == list(range(256))
    del ids[b"\x00"], ids[b"~"]
    with pytest.raises(ValueError, match="2 of the 256 bytes have no token .0x00, 0x7e"):
        ids_of_bytes(ids)


@pytest.mark.parametrize("tokens", ["<s>", [""], ["<s>", "<s>"], ["\ud800"], [f"<{i}>" for i in range(20_000)]])
def test_special_tokens_that_cannot_be(tokens):
    with pytest.raises(ValueError, match="special_tokens"):
        check_special_tokens(tokens)


def test_special_tokens_go_last_unless_they_have_an_id():
    assert place_special_tokens(BYTES, [], ["<a>", "<b>"]) == {"<a>": 256, "<b>": 257}
    assert place_special_tokens(BYTES | {256: b"<b>"}, [], ["<a>", "<b>"]) == {"<a>": 257, "<b>": 256}
    assert place_special_tokens(BYTES, [], {"<a>": 300, "<b>": 290}) == {"<a>": 300, "<b>": 290}


@pytest.mark.parametrize(
    ("special_tokens", "message"),
    [
        (["a"], "ordinary token"),
        (["ab"], "ordinary token"),
        ({"<a>": 65}, "id 65 belongs to another"),
        ({"<a>": 300, "<b>": 300}, "id 300 belongs to another"),
        ({"<c>": 300}, "given id 300, in the vocabulary 257"),
    ],
)
def test_special_tokens_that_ordinary_text_or_another_token_could_be(special_tokens, message):
    vocab = BYTES | {256: b"ab", 257: b"<c>"}
    with pytest.raises(ValueError, match=message):
        place_special_tokens(vocab, [(b"a", b"b")], special_tokens)
