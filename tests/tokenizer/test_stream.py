import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.tokenizer.stream import StreamDecoder
from tests.tokenizer.awkward import texts


def byte_of(token):
    return bytes([token])


@given(
    st.binary(max_size=30)
    | texts.map(str.encode)
    | st.tuples(texts, st.integers(0, 9)).map(lambda c: c[0].encode()[c[1] :])
)
def test_joined_stream_is_the_decoded_whole(data):
    stream = StreamDecoder(byte_of)
    assert "".join(stream.push(byte) for byte in data) + stream.flush() == data.decode("utf-8", "replace")


@given(texts)
def test_valid_text_comes_character_by_character_without_replacements(text):
    stream = StreamDecoder(byte_of)
    parts = [stream.push(byte) for byte in text.encode()]
    assert [part for part in parts if part] == list(text)
    assert stream.flush() == ""


def test_flush_starts_afresh():
    stream = StreamDecoder(byte_of)
    assert stream.push(0xF0) == ""
    assert stream.flush() == "\ufffd"
    assert stream.push(ord("a")) == "a"


@given(st.data())
def test_tokens_that_split_characters(trained, data):
    tokenizer = trained["gpt2"]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)


@pytest.mark.parametrize("token", [-1, 500, 10**12])
def test_an_unknown_id_is_a_value_error(trained, token):
    with pytest.raises(ValueError, match=f"id {token}: not in the vocabulary"):
        trained["gpt2"].stream().push(token)
