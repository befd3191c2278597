"""groundup's side: every work runs, and gives what the public API gives."""

import numpy as np
import pytest

from groundup.bench import tokenizer_ours
from groundup.bench.tokenizer_checks import of_bytes, of_ids
from groundup.bench.tokenizer_corpus import write_vocabulary
from groundup.bench.tokenizer_turns import SEPARATOR, Task
from groundup.tokenizer import Tokenizer

TEXTS = ["the cat in the hat", " sat on the mat, didn't it? " * 20, "naïve 你好 🌍\r\n"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train_from_iterator(TEXTS, 300, [SEPARATOR])


@pytest.fixture(scope="module")
def task(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = write_vocabulary("", tokenizer, folder)
    (folder / "text.txt").write_bytes(SEPARATOR.join(TEXTS).encode())
    np.save(folder / "ids.npy", np.array([id for text in TEXTS for id in tokenizer.encode(text)], np.uint32))
    options = {
        "text": str(folder / "text.txt"),
        "ids": str(folder / "ids.npy"),
        "vocabulary": str(vocabulary.folder),
        "vocab_size": vocabulary.size,
        "end_of_text": vocabulary.end_of_text,
        "separator": SEPARATOR,
        "num_strings": 3,
        "threads": 1,
    }
    return Task(options)


def done(work, task):
    call, results = tokenizer_ours.WORKS[work](task)
    return results(call())


@pytest.mark.parametrize("work", ["encode_ragged", "encode_file", "encode_batch"])
def test_whole_texts(work, task, tokenizer):
    assert of_ids(task.options, done(work, task)) == of_ids(task.options, map(tokenizer.encode, TEXTS))


@pytest.mark.parametrize("work", ["encode_one", "encode_one_array"])
def test_one_string(work, task, tokenizer):
    expected = [tokenizer.encode(task.strings[0])]
    assert of_ids(task.options, done(work, task)) == of_ids(task.options, expected)


@pytest.mark.parametrize("work", ["encode_many", "encode_many_arrays"])
def test_many_strings(work, task, tokenizer):
    expected = map(tokenizer.encode, task.strings)
    assert of_ids(task.options, done(work, task)) == of_ids(task.options, expected)


@pytest.mark.parametrize("work", ["decode_bytes_array", "decode_bytes_list", "decode_text_array", "decode_text_list"])
def test_decoding(work, task):
    expected = (text.encode() for text in TEXTS)
    assert of_bytes(task.options, done(work, task)) == of_bytes(task.options, expected)


def test_training(task):
    expected = Tokenizer.train(task.path, task.vocab_size, [SEPARATOR])
    assert set(done("train", task)) == set(expected.vocab.values())
