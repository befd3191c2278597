"""A whole sweep in seconds: its files, divergence that ends a run early, and what a kill leaves."""

import json
from dataclasses import replace

import pytest

from groundup.scaling import SweepSettings, resume_sweep, sweep_lr
from groundup.scaling import sweep as room
from groundup.scaling.sweep import read_runs
from groundup.scaling.sweep_run import WINDOW, recent
from groundup.scaling.sweep_search import Cell, Job, due

TINY = SweepSettings(
    d_model=16, num_layers=1, num_heads=2, context_length=16, batch_sizes=(4,), vocab_size=270, steps=20, seeds=2,
    low=0.01, high=1.0, ratio=10.0, highest=100.0, edge_factor=10.0, text_bytes=150_000, scored_bytes=1_500,
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "run"
    said = []
    return folder, sweep_lr([], TINY, out=folder, device="cpu", say=said.append), said


def test_all_rates_are_there_and_the_best_is_the_one_that_scored_best(finished):
    folder, result, said = finished
    runs = read_runs(folder / "runs.jsonl")
    (cell,) = result["cells"]
    assert json.loads((folder / "result.json").read_text()) == result
    assert {row["rate"] for row in cell["rates"]} >= set(TINY.grid) == {0.01, 0.1, 1.0}
    assert all(len(row["bits_per_byte"]) == 2 for row in cell["rates"])
    whole = [row for row in cell["rates"] if not row["diverged"]]
    assert cell["best_tried"]["rate"] == min(whole, key=lambda row: row["mean"])["rate"]
    assert due(TINY, runs) == []
    assert said[-1].startswith(f"run {len(runs)}: rate")


def test_rates_that_are_too_high_diverge_and_are_stopped_early(finished):
    _, result, _ = finished
    (cell,) = result["cells"]
    edge = cell["edge"]
    assert edge["factor"] is not None and edge["factor"] <= 10.0
    lost = next(row for row in cell["rates"] if row["rate"] == edge["diverged"])
    assert lost["diverged"] and lost["faults"]
    assert min(lost["steps"]) < TINY.steps
    assert all(row["diverged"] == 0 for row in cell["rates"] if row["rate"] <= edge["stable"])


def test_a_seed_is_another_run_and_the_same_seed_the_same(finished, tmp_path):
    folder, result, _ = finished
    first = result["cells"][0]["rates"][0]["bits_per_byte"]
    assert first[0] != first[1]
    train = room.trainer(folder, TINY, {"4": TINY.steps}, "cpu")
    assert train(Job(Cell(4, 0.1), 0.01, 0))["bits_per_byte"] == first[0]


def test_a_sweep_that_was_killed_goes_on_and_ends_the_same(finished, tmp_path, monkeypatch):
    folder, result, _ = finished
    inner, count = room.train_at, 0

    def stops(*arguments):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return inner(*arguments)

    monkeypatch.setattr(room, "train_at", stops)
    with pytest.raises(KeyboardInterrupt):
        sweep_lr([], TINY, out=tmp_path / "run", device="cpu")
    path = tmp_path / "run" / "runs.jsonl"
    assert len(read_runs(path)) == 3
    with open(path, "a") as file:
        file.write('{"rate": 0.00')  # what a kill leaves
    count = 100
    again = resume_sweep(tmp_path / "run", device="cpu")
    assert count - 100 == len(read_runs(folder / "runs.jsonl")) - 3, "no finished run was made again"
    for ours, theirs in zip(again["cells"][0]["rates"], result["cells"][0]["rates"], strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_muon_and_grids_of_batch_size_see_the_same_tokens(tmp_path):
    settings = replace(TINY, optimizer="muon_adamw", batch_sizes=(4, 8), seeds=1, steps=8, high=0.1, highest=0.1)
    result = sweep_lr([], settings, out=tmp_path / "run", device="cpu")
    assert [(cell["batch_size"], cell["steps"]) for cell in result["cells"]] == [(4, 8), (8, 4)]
    scored = [row["mean"] for cell in result["cells"] for row in cell["rates"]]
    assert len(set(scored)) == 4
    assert any("no rate up to 0.1 diverged" in note for note in result["notes"])
    adamw = sweep_lr([], replace(settings, optimizer="adamw"), out=tmp_path / "other", device="cpu")
    assert adamw["cells"][0]["rates"][0]["mean"] != scored[0]


@pytest.mark.slow
def test_workers_make_the_runs_that_one_process_makes(finished, tmp_path):
    folder, result, _ = finished
    settings = replace(TINY, high=0.1, highest=0.1)
    result = sweep_lr([], settings, out=tmp_path / "run", device="cpu", at_once=2)
    ours = {(r["rate"], r["seed"]): r["bits_per_byte"] for r in read_runs(tmp_path / "run" / "runs.jsonl")}
    theirs = {(r["rate"], r["seed"]): r["bits_per_byte"] for r in read_runs(folder / "runs.jsonl")}
    assert len(ours) == 4 and len(result["cells"][0]["rates"]) == 2
    for key, bits in ours.items():
        assert bits == pytest.approx(theirs[key], rel=1e-4)  # sums in another order, by the number of threads


def test_a_budget_decides_the_steps(tmp_path):
    settings = replace(TINY, steps=None, seeds=1, high=0.1, highest=0.1, budget_seconds=1e-3)
    with pytest.raises(ValueError, match="the budget leaves 0 steps to a run"):
        sweep_lr([], settings, out=tmp_path / "run", device="cpu")
    assert not room.is_sweep(tmp_path / "run")


def test_folders_that_are_in_use_or_none_are_refused(finished, tmp_path):
    with pytest.raises(ValueError, match="already holds something.*--resume"):
        sweep_lr([], TINY, out=finished[0])
    with pytest.raises(ValueError, match="nothing to go on with"):
        resume_sweep(tmp_path)
    (tmp_path / "runs.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="not that of a run"):
        read_runs(tmp_path / "runs.jsonl")


def test_recent_is_the_mean_of_the_last_steps():
    assert recent([100.0] * 5 + [1.0] * WINDOW) == 1.0
    assert recent([2.0, 4.0]) == 3.0
