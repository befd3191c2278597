import logging
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.tokenizer import counting
from groundup.tokenizer.counting import PretokenCounter, read_text
from groundup.tokenizer.pretokenize import Pretokenizer
from tests.tokenizer.awkward import texts


@given(st.lists(texts.map(str.encode) | st.binary(max_size=5)).map(b"".join), st.integers(1, 7))
def test_reading_equals_decoding_the_whole_file(tmp_path_factory, data, size):
    path = tmp_path_factory.mktemp("read") / "file.txt"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_READ_BYTES", size)
        assert "".join(read_text(path)) == data.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("data", "invalid"),
    [
        (b"plain", 0),
        ("\ufffd🌍\ufffd".encode(), 0),
        (b"a\xffb\xfe\xef\xbf\xbd", 2),
        (b"cut \xf0\x9f", 1),
        (b"", 0),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_invalid_utf8_is_said_once(tmp_path, caplog, monkeypatch, data, invalid, size):
    monkeypatch.setattr(counting, "_READ_BYTES", size)
    path = tmp_path / "file.txt"
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        list(read_text(path))
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ([f"{path}: {invalid} invalid UTF-8 sequences were read as U+FFFD"] if invalid else [])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(read_text(tmp_path / "absent.txt"))


@given(st.sampled_from(["gpt2", "cl100k", "o200k", "none"]), texts, st.integers(1, 30))
def test_counts_do_not_depend_on_the_cuts(pattern, text, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_READ_BYTES", size)
        counter = PretokenCounter(pattern, ["<|endoftext|>"])
        counter.add(text[i : i + size] for i in range(0, len(text), size))
    documents = text.split("<|endoftext|>")
    expected = Counter(piece.encode() for part in documents for piece in Pretokenizer(pattern).split(part))
    assert counter.counts() == expected


def test_one_long_line_is_read_in_bounded_parts(tmp_path):
    path = tmp_path / "line.txt"
    vocabulary = [f"word{i}" for i in range(50)]
    path.write_text(" ".join(random.choices(vocabulary, k=400_000)))
    assert path.stat().st_size > 2 * counting._READ_BYTES
    parts = list(read_text(path))
    assert max(map(len, parts)) <= counting._READ_BYTES
    counter = PretokenCounter("gpt2", [])
    counter.add(parts)
    assert sum(counter.counts().values()) == 800_000  # a word and its number
