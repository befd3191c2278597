"""Tables kept from one process to the next are those of the files, or are not used."""

import json

import pytest

from groundup.tokenizer import Tokenizer, kept
from tests.tokenizer.awkward import FRAGMENTS

TEXT = " ".join(FRAGMENTS) * 3


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A saved tokenizer whose tables are kept however small it is."""
    monkeypatch.setenv("GROUNDUP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "SMALLEST", 0)
    Tokenizer.train_from_iterator([TEXT], 500, ["<|endoftext|>", "<|end|>"]).save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def kept_files(saved):
    return sorted((saved.parent / "cache" / "tokenizers").glob("*.bin"))


def test_what_is_recalled_is_what_was_read(saved, monkeypatch):
    first = Tokenizer.load(saved)
    (path,) = kept_files(saved)
    second = Tokenizer.load(saved)
    monkeypatch.setattr("groundup.tokenizer.formats.load", lambda *_: pytest.fail("parsed"))
    assert second.encode(TEXT) == first.encode(TEXT)
    assert second.encode(TEXT, "all") == first.encode(TEXT, "all")
    assert second.decode(second.encode_array(TEXT)) == TEXT
    assert (second.vocab_size, second.special_tokens, second.pattern) == (500, first.special_tokens, "gpt2")
    assert second.lossless and kept_files(saved) == [path]


def test_the_rest_of_the_definition_is_read_when_it_is_asked_for(saved):
    first, second = Tokenizer.load(saved), Tokenizer.load(saved)
    assert second._known_tables is not None
    assert (second.vocab, second.merges, second.fingerprint) == (first.vocab, first.merges, first.fingerprint)
    assert second.decode([257, 300]) == first.decode([257, 300])


def test_a_file_that_changed_is_not_mixed_with_its_old_tables(saved):
    Tokenizer.load(saved)
    recalled = Tokenizer.load(saved)
    contents = json.loads((saved / "tokenizer.json").read_text())
    contents["model"]["merges"].reverse()
    (saved / "tokenizer.json").write_text(json.dumps(contents))
    with pytest.raises(ValueError, match="changed on disk since it was loaded"):
        _ = recalled.merges
    changed = Tokenizer.load(saved)
    assert changed.merges[0] == tuple(Tokenizer.load(saved).merges[0])
    assert len(kept_files(saved)) == 2


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_damaged_tables_are_not_used(saved, damage):
    expected = Tokenizer.load(saved).encode(TEXT)
    (path,) = kept_files(saved)
    whole = path.read_bytes()
    flipped = whole[:-5] + bytes([whole[-5] ^ 4]) + whole[-4:]
    path.write_bytes({"cut": whole[:-100], "flip": flipped, "empty": b""}[damage])
    assert Tokenizer.load(saved).encode(TEXT) == expected
    assert path.read_bytes() == whole


def test_only_a_dozen_are_kept(saved, monkeypatch):
    monkeypatch.setattr(kept, "_MOST_FILES", 3)
    for number in range(6):
        Tokenizer.train_from_iterator([TEXT], 400 + number).save(saved.parent / str(number))
        Tokenizer.load(saved.parent / str(number))
    assert len(kept_files(saved)) == 3


def test_small_vocabularies_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUNDUP_CACHE", str(tmp_path / "cache"))
    Tokenizer.train_from_iterator([TEXT], 400).save(tmp_path / "tokenizer")
    Tokenizer.load(tmp_path / "tokenizer")
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_no_error(saved, monkeypatch):
    (saved.parent / "file").write_text("")
    monkeypatch.setenv("GROUNDUP_CACHE", str(saved.parent / "file"))
    assert Tokenizer.load(saved).vocab_size == 500
