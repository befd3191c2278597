"""The three benchmarks as a user starts them: what they race, their options, and the record that comes last."""

import argparse
import ast
import json
from pathlib import Path

import pytest

from groundup import bench
from groundup.bench import tokenizer_decode, tokenizer_encode, tokenizer_race, tokenizer_train
from groundup.bench.tokenizer_corpus import Corpus, Cut, prepare_corpus
from groundup.bench.tokenizer_options import arguments
from groundup.bench.tokenizer_race import OURS, RIVAL, side_scripts

NAMES = ("tokenizer-train", "tokenizer-encode", "tokenizer-decode")
PLANS = (tokenizer_train.plan, tokenizer_encode.plan, tokenizer_decode.plan)


@pytest.fixture
def only_ours(monkeypatch):
    sides = {
        program: (script, package if program == OURS else "no_such_package_at_all")
        for program, (script, package) in side_scripts().items()
    }
    monkeypatch.setattr(tokenizer_race, "side_scripts", lambda: sides)
    monkeypatch.delenv("GROUNDUP_VOCABULARIES", raising=False)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("<|endoftext|>".join("the cat in the hat sat on the mat " * n for n in range(1, 60)), "utf-8")
    return path


def works(script: Path) -> set[str]:
    """The works of a side, from its source: a peer need not be installed."""
    source = script.read_text("utf-8")
    functions = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    return {name for name in functions if name in source.partition("\nWORKS = ")[2].partition("}")[0]}


@pytest.mark.parametrize("plan", PLANS)
def test_every_way_to_do_a_work_is_there(plan, text, tmp_path):
    corpus = prepare_corpus([text], tmp_path, 0.05)
    options = argparse.Namespace(quick=True, threads=[1, 2])
    made, headline, _ = plan(options, corpus, tmp_path)
    assert headline is made[0]
    assert {OURS, RIVAL} <= {attempt.program for attempt in headline.tries}
    scripts = side_scripts()
    for cell in made:
        names = [(attempt.program, attempt.name) for attempt in cell.tries]
        assert len(set(names)) == len(names)
        assert all(attempt.work in works(scripts[attempt.program][0]) for attempt in cell.tries)
    assert len({(cell.title, cell.threads) for cell in made}) == len(made)


def test_the_headlines_are_those_of_the_goals(tmp_path):
    corpus = Corpus("", tmp_path, Cut(tmp_path / "text.txt", 100_000_000, 200))
    (tmp_path / "text.txt").write_text("x", "utf-8")
    train = tokenizer_train.cells(corpus, tokenizer_train.VOCAB_SIZES, [1, 2])
    assert (train[0].options["vocab_size"], train[0].threads, train[0].state) == (32_000, 1, "warm")
    assert [(c.options["vocab_size"], c.threads) for c in train if c.slow] == [(32_000, 1), (32_000, 2)]


def run(name, text, capsys, *more):
    code = bench.run(name, ["--quick", "--text", str(text), "--megabytes", "0.02", *more])
    return code, capsys.readouterr()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_without_peers_ours_is_measured_and_they_are_named(name, only_ours, text, capsys):
    code, said = run(name, text, capsys)
    assert code == 0, said.err
    made = json.loads(said.out.splitlines()[-1])
    assert made["name"] == name and made["ours"] > 0
    assert (made["peer"], made["peer_name"], made["ratio"]) == (None, None, None)
    peers = [row for row in made["rows"] if row["program"] != OURS]
    assert peers and all("make peers" in row["note"] and row["value"] is None for row in peers)
    assert made["details"]["corpus"]["source"] == "words.txt" and made["details"]["quick"] is True
    assert made["details"]["differing_outputs"] == []
    assert made["load_average"].keys() == {"before", "after"}


def test_without_ours_there_is_no_record(only_ours, text, tmp_path, monkeypatch, capsys):
    side = tmp_path / "side.py"
    side.write_text("raise ImportError('half an installation')", "utf-8")
    monkeypatch.setattr(tokenizer_race, "side_scripts", lambda: {OURS: (side, "json")})
    monkeypatch.setattr(tokenizer_decode, "TO_BYTES", tokenizer_decode.TO_BYTES[:1])
    monkeypatch.setattr(tokenizer_decode, "TO_TEXT", [])
    code, said = run("tokenizer-decode", text, capsys)
    assert code == 1
    assert "groundup did not run" in said.err and "half an installation" in said.err


def test_options():
    full = arguments("x", "", [], seconds=120.0)
    assert (full.megabytes, full.seconds, full.text) == (100.0, 120.0, [])
    assert full.threads[0] == 1
    quick = arguments("x", "", ["--quick", "--threads", "3", "2", "3", "--seconds", "7"], seconds=120.0)
    assert (quick.seconds, quick.threads) == (7.0, [2, 3]) and quick.megabytes < 1


@pytest.mark.parametrize(
    ("argv", "reason"), [(["--threads", "0"], "not a number of threads"), (["--quick", "--save"], "--quick")]
)
def test_options_that_make_no_sense(argv, reason, capsys):
    with pytest.raises(SystemExit):
        arguments("x", "", argv, seconds=1.0)
    assert reason in capsys.readouterr().err


def test_they_are_listed(capsys):
    assert bench.run() == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in NAMES)
    assert len({line.index(" ", 0) < 18 for line in listed.splitlines()}) == 1
