"""Reading for a build: difficulty orders texts, limits are kept, and the manifest names what was read."""

import random

import pytest

from groundup.build.settings import BuildSettings
from groundup.build.text import _up_to, difficulty, load_texts, read_text, save_texts, train_tokenizer_on_files
from groundup.corpus import Document
from groundup.files import sha256
from groundup.tokenizer import Tokenizer
from tests.build.conftest import story


def test_difficulty_orders_texts():
    draw = random.Random(0)
    noise = "".join(chr(draw.randrange(33, 126)) for _ in range(200_000))
    assert difficulty(["the same again. " * 10_000]) < difficulty([story(0, 3000)]) < difficulty([noise])


def test_difficulty_looks_at_the_whole_text():
    easy, hard = "a" * 3_000_000, "".join(random.Random(1).choices("abcdefgh", k=3_000_000))
    half = difficulty([easy, hard])
    assert difficulty([easy]) < half < difficulty([hard])
    assert half == pytest.approx(difficulty([hard]) / 2, rel=0.15)


def test_reading_stops_at_the_limit_and_says_so():
    documents = [Document("x" * 100, f"d{i}") for i in range(10)]
    assert _up_to(iter(documents), 250) == (documents[:3], False)
    assert _up_to(iter(documents), 10_000) == (documents, True)
    assert _up_to(iter(documents[:3]), 300) == (documents[:3], True)


def test_manifest_and_facts(stories):
    text = read_text([str(stories)], BuildSettings())
    assert text.facts.train_bytes == sum(len(t.encode()) for t in text.train)
    assert text.facts.documents == len(text.train)
    assert text.manifest["files"] == 40
    name, digest = next(iter(text.manifest["hashes"].items()))
    assert digest == sha256(name)
    assert not text.manifest["bundled"]


def test_no_files_means_the_bundled_text():
    text = read_text([], BuildSettings(budget_seconds=30.0))
    assert text.manifest["bundled"]
    assert "public domain" in text.manifest["licence"]
    assert text.facts.train_bytes > 4_000_000


def test_the_held_out_part_of_a_large_text_is_capped(tmp_path):
    (tmp_path / "large.jsonl").write_text("")
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(story(i, 9000))
    text = read_text([str(tmp_path)], BuildSettings(budget_seconds=6000.0))
    assert text.facts.held_out_bytes < 1_600_000


def test_held_out_text_survives_the_file(tmp_path):
    texts = ["line\u2028separator\nand\r\nmore", "emoji \U0001f30d", 'quotes " and \\ slashes']
    save_texts(tmp_path / "folder" / "h.jsonl", texts)
    assert load_texts(tmp_path / "folder" / "h.jsonl") == texts
    (tmp_path / "folder" / "h.jsonl").write_text('{"text": "easier"}\n')
    with pytest.raises(ValueError, match="changed since .*begin a new run"):
        load_texts(tmp_path / "folder" / "h.jsonl")


def test_train_tokenizer_on_files(stories, tmp_path):
    made = train_tokenizer_on_files([str(stories)], 300, ["<|endoftext|>"], "gpt2", str(tmp_path / "tok"))
    assert made["vocab_size"] == Tokenizer.load(tmp_path / "tok").vocab_size == 300
    assert made["bytes_per_token"] > 1.5


def test_a_little_validation_text_is_parted_by_document(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(story(i, 40))
    text = read_text([str(tmp_path)], BuildSettings())
    everything = [*text.train, *text.held_out, *text.validation]
    assert len(everything) == len(set(everything)) == 60
    assert 2_000 < sum(map(len, text.validation)) < 8_000


def test_a_text_that_is_too_short_keeps_all_that_is_not_held_out(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"Sentence {i} of few.\n\n" for i in range(300)))
    assert read_text([str(tmp_path)], BuildSettings()).validation == []
