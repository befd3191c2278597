import json

import pytest

from groundup import bench, presets
from groundup.accounting import count_parameters
from groundup.bench import train_step
from groundup.bench.measure import Rates
from groundup.bench.race import Entry, Setting
from groundup.bench.train_step import OURS, SHAPES, compare, table

FACTS = {
    "parameters": 1,
    "threads": 1,
    "flops_per_token": 1e9,
    "versions": {"torch": "2"},
    "environment": {"device": "a CPU"},
}


@pytest.mark.parametrize(("size", "millions"), [("S", 12.7), ("build", 5.3), ("M", 33.7)])
def test_shapes_have_the_stated_size(size, millions):
    s = SHAPES[size]
    config = presets.llama(
        vocab_size=s.vocab_size,
        d_model=s.d_model,
        num_layers=s.num_layers,
        num_heads=s.num_heads,
        d_ff=s.d_ff,
        context_length=s.context_length,
    )
    assert count_parameters(config).total / 1e6 == pytest.approx(millions, abs=0.05)
    assert s.d_ff == -(-8 * s.d_model // 96) * 32


def entry(program: str, name: str, *steps_per_second: float, failure: str | None = None) -> Entry:
    rates = Rates(steps_per_second) if steps_per_second else None
    return Entry(Setting(program, name, {}), rates, peak_bytes=10**9, facts=dict(FACTS), failure=failure)


TRIED = [
    entry(OURS, "slow", 1.0),
    entry(OURS, "fast", 2.0),
    entry("peer", "broken", failure="no compiler"),
    entry("peer", "works", 1.0),
]
FINAL = [entry(OURS, "fast", 2.0, 2.2, 2.4), entry("peer", "works", 1.0, 1.1, 1.2)]


def test_the_record_says_who_was_compared():
    made = compare("S", SHAPES["S"], TRIED, FINAL)
    assert (made.ours, made.peer, made.peer_name) == (2.2 * 4096, 1.1 * 4096, "peer (works)")
    assert made.ratio == pytest.approx(2.0)
    line = json.loads(made.line())
    assert {"name", "ours", "peer", "peer_name", "ratio", "unit", "device"} <= line.keys()


def test_ours_runs_in_the_precision_of_the_peers_too():
    same = entry(OURS, train_step.SAME, 1.5)
    assert [s.name for s in train_step.finalists([*TRIED, same], [OURS, "peer"])] == ["fast", "works", train_step.SAME]
    assert [s.name for s in train_step.finalists([same, TRIED[3]], [OURS, "peer"])] == [train_step.SAME, "works"]
    made = compare("S", SHAPES["S"], TRIED, [*FINAL, same])
    assert made.ratio == pytest.approx(2.0) and made.details["ratio_in_bf16"] == pytest.approx(1.5 / 1.1)
    assert compare("S", SHAPES["S"], TRIED, FINAL).details["ratio_in_bf16"] is None


def test_without_a_peer_there_is_no_ratio():
    made = compare("S", SHAPES["S"], TRIED[:2], FINAL[:1])
    assert (made.peer, made.peer_name, made.ratio) == (None, None, None)


def test_the_table_shows_every_setting_and_why_one_is_missing():
    rows = table(TRIED, FINAL, tokens=10, flops=1e9)
    assert [row["note"] for row in rows] == ["", "", "no compiler", ""]
    assert [row["heat"] for row in rows] == [10.0, 20.0, None, 10.0]
    assert [row["final"] for row in rows] == [None, 22.0, None, 11.0]
    assert [row["gflops"] for row in rows] == [10.0, 22.0, None, 11.0]


def test_listing_and_unknown_names(capsys):
    assert bench.run() == 0
    assert "train-step" in capsys.readouterr().out
    assert bench.run("train-stop") == 2
    assert "did you mean 'train-step'" in capsys.readouterr().err


@pytest.mark.slow
def test_ours_runs_turn_by_turn(monkeypatch, capsys):
    """The whole benchmark at a tiny size, without peers: what it prints last is its record."""
    tiny = train_step.Shape(32, 1, num_heads=2, d_ff=64, vocab_size=64, batch_size=2, context_length=8)
    only = [Setting(OURS, name, {"precision": name, "compile": False}) for name in ("fp32", "bf16")]
    monkeypatch.setitem(SHAPES, "S", tiny)
    monkeypatch.setattr(train_step, "settings", lambda: only)
    assert train_step.main(["--seconds", "0", "--turn-seconds", "0.01", "--device", "cpu"]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert made["ours"] > 0
    assert made["peer"] is None and made["ratio"] is None
