import doctest
import importlib
import logging
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.tokenizer import PATTERNS as TEXT_OF_PATTERN
from groundup.tokenizer import Tokenizer
from tests.tokenizer.awkward import texts
from tests.tokenizer.conftest import PROSE, SPECIAL_TOKENS

MODULES = ("bpe", "chat", "counting", "formats", "pretokenize", "stream", "tokenizer", "vocabulary")
PATTERNS = ("gpt2", "cl100k", "o200k", "none")


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module):
    result = doctest.testmod(importlib.import_module(f"groundup.tokenizer.{module}"))
    assert result.failed == 0


def test_the_cat_in_the_hat():
    tokenizer = Tokenizer.train_from_iterator(["the cat in the hat" * 3], 259, [], pattern=None)
    ids = {token: token_id for token_id, token in tokenizer.vocab.items()}
    learned = [(ids[a], ids[b], ids[a + b]) for a, b in tokenizer.merges]
    assert learned == [(116, 104, 256), (256, 101, 257), (257, 32, 258)]


def test_ids_are_bytes_then_merges_then_special_tokens(trained):
    tokenizer = trained["gpt2"]
    assert [tokenizer.vocab[byte] for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    merged = [tokenizer.vocab[256 + rank] for rank in range(len(tokenizer.merges))]
    assert merged == [left + right for left, right in tokenizer.merges]
    assert list(tokenizer.special_tokens.items()) == [(t, 496 + i) for i, t in enumerate(SPECIAL_TOKENS)]
    assert tokenizer.vocab_size == len(tokenizer.vocab) == 500
    assert tokenizer.end_of_text == 496


@given(st.sampled_from(PATTERNS), texts)
def test_decoding_gives_the_text_back(trained, pattern, text):
    tokenizer = trained[pattern]
    plain, parsed = tokenizer.encode(text), tokenizer.encode(text, allowed_special="all")
    assert tokenizer.decode(plain) == tokenizer.decode(parsed) == text
    assert not set(plain) & set(tokenizer.special_tokens.values())
    assert sum(token in tokenizer.special_tokens.values() for token in parsed) == sum(
        text.count(token) for token in tokenizer.special_tokens
    )


@pytest.fixture(scope="module")
def tiktoken_encodings(trained):
    tiktoken = pytest.importorskip("tiktoken")
    encodings = {}
    for name in ("gpt2", "cl100k", "o200k"):
        tokenizer = trained[name]
        special_ids = set(tokenizer.special_tokens.values())
        encodings[name] = tiktoken.Encoding(
            name,
            pat_str=TEXT_OF_PATTERN[name],
            mergeable_ranks={token: i for i, token in tokenizer.vocab.items() if i not in special_ids},
            special_tokens=tokenizer.special_tokens,
        )
    return encodings


@given(st.sampled_from(["gpt2", "cl100k", "o200k"]), texts)
def test_tiktoken_with_our_merges_gives_the_same_ids(trained, tiktoken_encodings, name, text):
    tokenizer, encoding = trained[name], tiktoken_encodings[name]
    assert tokenizer.encode(text) == encoding.encode_ordinary(text)
    assert tokenizer.encode(text, "all") == encoding.encode(text, allowed_special="all")
    some = {"<|end|>"}
    assert tokenizer.encode(text, some) == encoding.encode(text, allowed_special=some, disallowed_special=())


@pytest.mark.parametrize("name", ["gpt2", "cl100k", "o200k"])
def test_tiktoken_agrees_on_real_text(trained, tiktoken_encodings, real_text, name):
    assert trained[name].encode(real_text) == tiktoken_encodings[name].encode_ordinary(real_text)


def test_lone_surrogates_are_encoded_as_the_replacement_character(trained):
    tokenizer = trained["gpt2"]
    assert tokenizer.decode(tokenizer.encode("a\ud800b\udfff")) == "a\ufffdb\ufffd"


@pytest.mark.parametrize("text", ["", "\x00", "\ufeff", "\U0010ffff", "e" + "\u0301" * 1000, "\u202eabc", "a" * 5000])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_edges(trained, pattern, text):
    assert trained[pattern].decode(trained[pattern].encode(text)) == text


@pytest.mark.parametrize("unit", [" ", "\n", "a", "'s", "\r\n", " \n", "1", "🌍"])
def test_long_runs(trained, unit):
    for pattern in ("gpt2", "cl100k", "o200k"):
        text = unit * 30_000 + "x"
        assert trained[pattern].decode(trained[pattern].encode(text)) == text


def test_special_tokens_stay_text_unless_allowed(trained):
    tokenizer = trained["gpt2"]
    text = "a<|endoftext|>b<|end|>"
    end_of_text, end = tokenizer.special_tokens["<|endoftext|>"], tokenizer.special_tokens["<|end|>"]
    assert not {end_of_text, end} & set(tokenizer.encode(text))
    assert end_of_text in tokenizer.encode(text, ["<|endoftext|>"])
    assert end not in tokenizer.encode(text, ["<|endoftext|>"])
    assert tokenizer.encode("<|endoftext|>", allowed_special={"<|endoftext|>"}) == [end_of_text]


@pytest.mark.parametrize("allowed", ["<|endoftext|>", "none", ["<|endoftxt|>"]])
def test_allowed_special_that_is_none(trained, allowed):
    with pytest.raises(ValueError, match="allowed_special"):
        trained["gpt2"].encode("x", allowed)


def test_the_longest_of_overlapping_special_tokens():
    specials = ["<|a|>", "<|a|><|a|>", "<|a"]
    tokenizer = Tokenizer.train_from_iterator(["x"], 259, specials)
    assert tokenizer.encode("<|a|><|a|><|a|><|a", "all") == [257, 256, 258]
    assert tokenizer.encode("<|a|>", ["<|a"])[0] == 258


@given(st.sampled_from(PATTERNS), texts, st.integers(1, 20), st.booleans())
def test_encoding_in_parts_equals_encoding_the_whole(trained, pattern, text, size, special):
    tokenizer = trained[pattern]
    allowed = "all" if special else ()
    parts = (text[i : i + size] for i in range(0, len(text), size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("groundup.tokenizer.encoding"), "_STREAM_CHARACTERS", 5)
        assert list(tokenizer.encode_iterable(parts, allowed)) == tokenizer.encode(text, allowed)


def test_encoding_in_parts_is_lazy(trained):
    def endless():
        while True:
            yield "the cat "

    ids = trained["gpt2"].encode_iterable(endless())
    first = [next(ids) for _ in range(10)]
    assert trained["gpt2"].decode(first) in "the cat " * 10


def test_a_batch_is_each_text(trained):
    tokenizer = trained["gpt2"]
    batch = ["the cat", "", "hat<|end|>"]
    assert tokenizer.encode_batch(batch) == [tokenizer.encode(text) for text in batch]
    assert tokenizer.encode_batch(iter(batch), "all") == [tokenizer.encode(text, "all") for text in batch]
    with pytest.raises(ValueError, match="workers"):
        tokenizer.encode_batch(batch, workers=-1)


@pytest.mark.slow
def test_a_batch_in_processes(trained):
    tokenizer = trained["gpt2"]
    batch = [f"{PROSE} number {i} <|end|>" for i in range(300)]
    assert tokenizer.encode_batch(batch, "all", workers=2) == tokenizer.encode_batch(batch, "all")


def test_a_copy_in_another_process_is_the_same(trained):
    tokenizer = trained["cl100k"]
    tokenizer.encode(PROSE)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.encode(PROSE) == tokenizer.encode(PROSE)


@pytest.mark.parametrize("ids", [[-1], [500], [65, 10**20]])
def test_ids_outside_the_vocabulary(trained, ids):
    with pytest.raises(ValueError, match=r"not in the vocabulary, whose ids are below 500"):
        trained["gpt2"].decode(ids)


def test_decoding_arrays_tensors_and_invalid_utf8(trained):
    tokenizer = trained["gpt2"]
    ids = tokenizer.encode("the cat")
    assert tokenizer.decode(np.array(ids)) == tokenizer.decode(torch.tensor(ids)) == "the cat"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode([0xF0, 0x9F, 65]) == "\ufffdA"
    assert tokenizer.decode_bytes([0xF0, 0x9F, 65]) == b"\xf0\x9fA"


def test_files_and_texts_train_alike(tmp_path):
    documents = [PROSE, "more of the same, " * 20, "and\r\nthis"]
    one = tmp_path / "one.txt"
    one.write_bytes("<|endoftext|>".join(documents).encode())
    several = [tmp_path / f"{number}.txt" for number in range(3)]
    for path, document in zip(several, documents, strict=True):
        path.write_bytes(document.encode())
    prints = {
        Tokenizer.train(one, 400).fingerprint,
        Tokenizer.train(str(one), 400).fingerprint,
        Tokenizer.train(several, 400).fingerprint,
        Tokenizer.train(several[::-1], 400).fingerprint,
        Tokenizer.train_from_iterator(documents, 400).fingerprint,
        Tokenizer.train_from_iterator(iter(documents[::-1]), 400).fingerprint,
    }
    assert len(prints) == 1


def test_no_merge_spans_or_learns_from_a_special_token():
    text = "<|endoftext|>".join(["ab"] * 50)
    tokenizer = Tokenizer.train_from_iterator([text], 300)
    assert tokenizer.merges == [(b"a", b"b")]


def test_a_text_that_allows_fewer_merges_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        tokenizer = Tokenizer.train_from_iterator(["abc"], 1000)
    assert caplog.messages == ["the text allows 2 merges of the 743 asked for"]
    assert tokenizer.vocab_size == 259
    assert tokenizer.end_of_text == 258


@pytest.mark.parametrize("texts_", [[], [""], ["a"], ["a b"]])
def test_training_on_almost_nothing(texts_):
    tokenizer = Tokenizer.train_from_iterator(texts_, 257)
    assert tokenizer.merges == []
    assert tokenizer.decode(tokenizer.encode("🌍")) == "🌍"


def test_training_on_binary_and_invalid_utf8(tmp_path, caplog):
    path = tmp_path / "binary"
    path.write_bytes(bytes(range(256)) * 20)
    with caplog.at_level(logging.WARNING):
        tokenizer = Tokenizer.train(path, 300)
    assert any("invalid UTF-8" in message for message in caplog.messages)
    assert tokenizer.decode(tokenizer.encode("\x00\ufffd")) == "\x00\ufffd"


def test_one_word_of_a_hundred_thousand_characters():
    word = "abracadabra" * 10_000
    tokenizer = Tokenizer.train_from_iterator([word], 270, [])
    assert tokenizer.decode(tokenizer.encode(word)) == word
    assert len(tokenizer.encode(word)) < len(word) / 8


@pytest.mark.parametrize("vocab_size", [-1, 0, 256, 10**9])
def test_a_vocabulary_size_that_cannot_be(vocab_size):
    with pytest.raises(ValueError, match=f"vocab_size {vocab_size}"):
        Tokenizer.train_from_iterator(["x"], vocab_size)


def test_training_on_a_string_or_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="write .text."):
        Tokenizer.train_from_iterator("the text", 300)
    with pytest.raises(FileNotFoundError):
        Tokenizer.train(tmp_path / "absent", 300)


def test_progress_is_told(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(PROSE * 5, encoding="utf-8")
    seen = []
    Tokenizer.train([path, path], 400, progress=lambda *state: seen.append(state))
    size = path.stat().st_size
    assert seen == [("reading", size, 2 * size), ("reading", 2 * size, 2 * size), ("merging", 122, 143)]


def test_without_end_of_text():
    tokenizer = Tokenizer.train_from_iterator(["x"], 256, [])
    with pytest.raises(ValueError, match=r"no special token '<\|endoftext\|>'"):
        _ = tokenizer.end_of_text


def test_a_vocabulary_as_the_course_passes_it():
    vocab = {0: b"<|endoftext|>", **{byte + 1: bytes([byte]) for byte in range(256)}, 257: b"th"}
    tokenizer = Tokenizer(vocab, [(b"t", b"h")], ["<|endoftext|>", "<|new|>"])
    assert tokenizer.encode("th<|endoftext|>", allowed_special="all") == [257, 0]
    assert tokenizer.special_tokens == {"<|endoftext|>": 0, "<|new|>": 258}
    assert tokenizer.decode([257, 258]) == "th<|new|>"


def test_repr_says_what_it_is(trained):
    assert repr(trained["gpt2"]).startswith("Tokenizer(vocab_size=500, pattern='gpt2', special_tokens=[")
