import json

import pytest

from groundup import bench
from groundup.bench import ngram
from groundup.bench.measure import Rates
from groundup.bench.ngram import OURS, PEER, compare
from groundup.bench.race import Entry, Setting

FACTS = {
    "ngrams": [3, 4],
    "model_bytes": 99,
    "held_out_bits_per_token": 1.5,
    "scored_tokens_per_second": 7.0,
    "versions": {"numba": "0"},
    "environment": {"device": "a CPU"},
}
TOLD = {"folder": "private", "tokens": 10, "order": 2}


def entry(program, *rates, failure=None):
    return Entry(Setting(program, "x", {}), Rates(rates) if rates else None, facts=dict(FACTS), failure=failure)


def test_the_record_is_in_tokens_per_second():
    made = compare(TOLD, [entry(OURS, 2.0, 4.0, 3.0), entry(PEER, 1.0, 1.5, 1.25)])
    assert (made.ours, made.peer, made.peer_name) == (30.0, 12.5, "KenLM (x)")
    assert made.ratio == pytest.approx(2.4)
    assert "private" not in made.line()


def test_without_lmplz_there_is_no_ratio():
    made = compare(TOLD, [entry(OURS, 2.0), entry(PEER, failure="it ended with code 1")])
    assert (made.ours, made.peer, made.ratio) == (20.0, None, None)
    assert made.rows[1]["note"] == "it ended with code 1"


@pytest.mark.slow
def test_the_benchmark_runs_alone(monkeypatch, capsys):
    monkeypatch.setattr(ngram.shutil, "which", lambda name: None)
    options = ["--megabytes", "0.05", "--vocab-size", "300", "--order", "3", "--seconds", "0"]
    assert bench.run("ngram", options) == 0
    said = capsys.readouterr().out
    assert "groundup is measured alone" in said
    line = json.loads(said.splitlines()[-1])
    assert line["ours"] > 0 and line["peer"] is None
    assert 0 < line["details"]["held_out_bits_per_token"] < 8.3
