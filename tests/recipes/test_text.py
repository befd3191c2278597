"""From files to shards and validation ids: what is cut where, and what is predicted after what."""

import json
from dataclasses import replace

import numpy as np
import pytest

from groundup.config import override
from groundup.recipes import RECIPES, prepare
from groundup.recipes.text import cut

CHARACTERS = RECIPES["tinyshakespeare-cpu"]
DOCUMENTS = override(RECIPES["tinystories-cpu"], "model.vocab_size=300")


def write(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_the_cut_is_nanogpts(shared_data):
    """nanoGPT's prepare.py prints 1,003,854 and 111,540 tokens."""
    text = (shared_data / "pretrain" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    assert [len(part) for part in cut(text, 0.1)] == [1_003_854, 111_540]


def test_a_text_is_cut_and_its_end_goes_on_after_the_last_character(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(100))
    made = prepare(CHARACTERS, [write(tmp_path / "t.txt", text)], [], tmp_path / "data")
    assert bytes(made.shards.read(0, 90).astype(np.uint8)).decode() == text[:90]
    assert made.shards.num_tokens == 91  # and the end of the text
    assert [bytes(ids.astype(np.uint8)).decode() for ids in made.validation] == [text[90:]]
    assert made.begin == ord(text[89])
    assert made.tokens == made.characters == 10


def test_ends_of_lines_and_spaces_at_the_ends_are_kept(tmp_path):
    text = "\n " + "ab\n" * 40 + "  \n"
    made = prepare(CHARACTERS, [write(tmp_path / "t.txt", text)], [], tmp_path / "data")
    read = made.shards.read(0, made.shards.num_tokens - 1).tolist() + made.validation[0].tolist()
    assert bytes(read).decode() == text


def test_documents_end_with_end_of_text_which_is_predicted(tmp_path):
    train = write(
        tmp_path / "train.jsonl", "".join(json.dumps({"text": f"story {i} of a fox"}) + "\n" for i in range(9))
    )
    valid = write(tmp_path / "valid.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in ("a fox", "b")))
    made = prepare(DOCUMENTS, [train], [valid], tmp_path / "data")
    end = made.tokenizer.end_of_text
    assert made.begin == end
    assert made.shards.num_documents == 9
    assert [made.tokenizer.decode(ids[:-1]) for ids in made.validation] == ["a fox", "b"]
    assert [int(ids[-1]) for ids in made.validation] == [end, end]
    assert made.characters == 6


def test_what_is_prepared_is_used_again_without_the_files(tmp_path):
    file = write(tmp_path / "t.txt", "to be or not to be " * 20)
    first = prepare(CHARACTERS, [file], [], tmp_path / "data")
    file.unlink()
    again = prepare(CHARACTERS, [file], [], tmp_path / "data")
    assert again.shards.fingerprint == first.shards.fingerprint
    np.testing.assert_array_equal(again.validation[0], first.validation[0])
    with pytest.raises(ValueError, match="prepared with tail=0.1, and this recipe has 0.2"):
        prepare(replace(CHARACTERS, tail=0.2), [file], [], tmp_path / "data")


def test_files_that_a_recipe_cannot_use_are_refused(tmp_path):
    file = write(tmp_path / "t.txt", "x" * 50)
    with pytest.raises(ValueError, match="give one file and no --valid .given: 2 files, 0"):
        prepare(CHARACTERS, [file, file], [], tmp_path / "a")
    with pytest.raises(ValueError, match="needs files to train on and --valid FILE"):
        prepare(DOCUMENTS, [file], [], tmp_path / "b")
    with pytest.raises(ValueError, match="1 character; too few"):
        prepare(CHARACTERS, [write(tmp_path / "one.txt", "x")], [], tmp_path / "c")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        prepare(CHARACTERS, [tmp_path / "nowhere.txt"], [], tmp_path / "d")
