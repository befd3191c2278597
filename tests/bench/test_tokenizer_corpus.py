"""The text and the vocabulary that all programs get."""

import base64
import json

import pytest

from groundup.bench import tokenizer_corpus
from groundup.bench.tokenizer_corpus import find_gpt2, prepare_corpus, prepare_vocabulary, write_cut
from groundup.bench.tokenizer_turns import SEPARATOR
from groundup.tokenizer import Tokenizer


def test_a_cut_ends_between_characters(tmp_path):
    cut = write_cut(tmp_path / "cut.txt", ["ab", "cé", "never"], len(f"ab{SEPARATOR}cé".encode()) - 1)
    assert cut.path.read_bytes().decode() == f"ab{SEPARATOR}c"
    assert (cut.documents, cut.text_bytes) == (2, cut.path.stat().st_size)


def test_a_text_that_spells_the_separator_stays_one_document(tmp_path):
    cut = write_cut(tmp_path / "cut.txt", [f"one {SEPARATOR} document", "\ud800 another"], 1000)
    assert len(cut.path.read_bytes().decode().split(SEPARATOR)) == cut.documents == 2


def test_named_files_up_to_the_size(tmp_path):
    file = tmp_path / "records.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"document {n} " * 100}) for n in range(50)), "utf-8")
    corpus = prepare_corpus([file], tmp_path, 0.02)
    assert 19_000 < corpus.whole.text_bytes <= 20_000 and corpus.source == "records.jsonl"
    small = corpus.cut(0.005)
    assert corpus.whole.path.read_bytes().startswith(small.path.read_bytes())
    assert 4_900 < small.text_bytes <= 5_000
    assert corpus.cut(1.0) is corpus.whole


def test_the_bundled_text_is_not_repeated(tmp_path):
    corpus = prepare_corpus([], tmp_path, 1000.0)
    assert "bundled" in corpus.source and "not repeated" in corpus.source
    texts = corpus.whole.path.read_bytes().decode().split(SEPARATOR)
    assert len(texts) == len(set(texts)) == 233
    assert 9 < corpus.whole.megabytes < 12


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        prepare_corpus([tmp_path / "none.txt"], tmp_path, 1.0)


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "text.md"
    file.write_text("the cat in the hat sat on the mat. " * 20, "utf-8")
    return prepare_corpus([file], tmp_path, 1.0)


@pytest.fixture
def no_vocabularies(monkeypatch, tmp_path):
    monkeypatch.delenv("GROUNDUP_VOCABULARIES", raising=False)
    monkeypatch.setattr(tokenizer_corpus, "checkout", lambda: tmp_path)


def test_without_gpt2_a_vocabulary_is_trained_and_all_forms_agree(corpus, no_vocabularies, tmp_path):
    made = prepare_vocabulary(corpus, tmp_path / "vocabulary")
    assert made.name == "trained on the text"
    tokenizer = Tokenizer.load(made.folder)
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (made.size, made.end_of_text)
    lines = [line.split() for line in (made.folder / "ranks.tiktoken").read_text("ascii").splitlines()]
    ranks = {int(rank): base64.b64decode(token) for token, rank in lines}
    assert ranks == {n: token for n, token in tokenizer.vocab.items() if n != made.end_of_text}


def test_gpt2_where_its_files_are(corpus, monkeypatch, tmp_path):
    folder = tmp_path / "vocabularies" / "gpt2"
    folder.mkdir(parents=True)
    monkeypatch.setenv("GROUNDUP_VOCABULARIES", str(folder.parent))
    with pytest.raises(ValueError, match="no gpt2/vocab.json"):
        find_gpt2()
    (folder / "vocab.json").write_text("{}", "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    assert find_gpt2() == folder


def test_gpt2_in_a_checkout(no_vocabularies, tmp_path):
    assert find_gpt2() is None
    folder = tmp_path / ".vocabularies" / "gpt2"
    folder.mkdir(parents=True)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).touch()
    assert find_gpt2() == folder
