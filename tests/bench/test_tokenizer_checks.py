"""What outputs of tokenizers are compared by: every difference shows, and forms that mean the same do not differ."""

import hashlib
import json

import numpy as np
import pytest

from groundup.bench import tokenizer_checks
from groundup.bench.tokenizer_checks import of_bytes, of_ids, of_tokens, verdict

OPTIONS = {"end_of_text": 9, "separator": "<|endoftext|>"}


def test_ids_by_hand():
    expected = hashlib.sha256(b"\x01\0\0\0\x00\x01\0\0").hexdigest()
    assert of_ids(OPTIONS, [[1], [256]]) == {"sha256": expected, "count": 2}


@pytest.mark.parametrize(
    "results",
    [
        [[1, 2, 300]],
        [[], [1], [2, 300]],
        [[1, 9, 2, 300, 9]],
        [np.array([1, 2, 300], np.uint16)],
        [np.array([1, 2, 9], np.uint32), np.array([300], np.int64)],
        (row for row in ([1, 2], [300])),
    ],
)
def test_the_same_ids_in_any_form(results):
    assert of_ids(OPTIONS, results) == of_ids(OPTIONS, [[1, 2, 300]])


@pytest.mark.parametrize("other", [[[1, 2, 301]], [[2, 1, 300]], [[1, 2]], [[1, 2, 300, 0]], []])
def test_other_ids_differ(other):
    said = verdict(of_ids(OPTIONS, [[1, 2, 300]]), of_ids(OPTIONS, other))
    assert said.startswith("DIFFERS") and said.endswith("against 3")


def test_many_ids_are_hashed_piece_by_piece(monkeypatch):
    ids = list(range(100))
    whole = of_ids(OPTIONS, [ids])
    monkeypatch.setattr(tokenizer_checks, "_SLICE", 7)
    assert of_ids(OPTIONS, [ids]) == whole


def test_bytes():
    assert of_bytes(OPTIONS, [b"ab", b"c"]) == of_bytes(OPTIONS, [b"abc"])
    assert verdict(of_bytes(OPTIONS, [b"abc"]), of_bytes(OPTIONS, [b"abd"])).startswith("DIFFERS")


def test_vocabularies_are_compared_by_their_share_in_common():
    ours = of_tokens(OPTIONS, [b"a", b"b", b"ab", b"\xff", b"<|endoftext|>"])
    assert ours["count"] == 4  # some trainers know no special tokens: the separator does not count
    assert verdict(ours, of_tokens(OPTIONS, [b"\xff", b"ab", b"b", b"a"])) == "identical"
    assert verdict(ours, of_tokens(OPTIONS, [b"a", b"b", b"ba", b"abc"])) == "50.00 % of ours"


def test_no_verdict_on_what_is_missing_or_on_itself():
    check = of_ids(OPTIONS, [[1]])
    assert verdict(None, check) == verdict(check, None) == ""
    assert verdict(check, check) == "the reference"
    assert verdict(check, dict(check)) == "identical"


@pytest.mark.parametrize(("kind", "results"), [("ids", [[1]]), ("bytes", [b"x"]), ("tokens", [b"x"])])
def test_checks_are_files(tmp_path, kind, results):
    path = tmp_path / "check.json"
    tokenizer_checks.write(OPTIONS | {"check": str(path), "check_kind": kind}, results)
    assert json.loads(path.read_text("utf-8"))["count"] == 1
