"""A whole comparison in seconds: its files, its resumption, and divergence as a result."""

import json
from dataclasses import replace

import pytest

from groundup.accounting import training_flops_per_token
from groundup.scaling import ablate, ladder, modern, named, resume
from groundup.scaling import ablation as room
from groundup.scaling.ablation import read_runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, result, settings) of two variants against a base."""
    from groundup.scaling import AblationSettings

    settings = AblationSettings(
        d_model=16, num_layers=1, num_heads=2, context_length=16, batch_size=2, vocab_size=270, steps=6, seeds=2,
        rates=(0.003, 0.01), tune_share=0.5, text_bytes=150_000, scored_bytes=1_500,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("ablation") / "run"
    variants = named(modern(settings), ["relu_mlp"], [("wide", ["blocks.0.ffn.d_ff=200"])])
    said: list[str] = []
    result = ablate([], variants, settings, out=folder, device="cpu", say=said.append)
    return folder, result, settings, said


def test_every_run_is_there_and_scored_alike(finished):
    folder, result, settings, _ = finished
    runs = read_runs(folder / "runs.jsonl")
    assert len(runs) == 3 * (2 + 2) and json.loads((folder / "result.json").read_text()) == result
    assert [row["name"] for row in result["variants"]] == ["base", "relu_mlp", "wide"]
    for row in result["variants"]:
        tuned = [run for run in runs if run["variant"] == row["name"] and not run["final"]]
        assert sorted(run["rate"] for run in tuned) == [0.003, 0.01]
        assert row["rate"] == min(tuned, key=lambda run: run["bits_per_byte"])["rate"]
        assert len(row["bits_per_byte"]) == 2 and all(2 < bits < 9 for bits in row["bits_per_byte"])
        assert row["bits_per_byte"][0] != row["bits_per_byte"][1]
        assert row["flops"] == row["steps"] * 32 * row["flops_per_token"]
        mine = [run for run in runs if run["variant"] == row["name"] and run["final"]]
        steps = sum(run["steps"] for run in mine)
        assert row["measured"]["step_seconds"] == pytest.approx(sum(run["seconds"] for run in mine) / steps)
    planned = json.loads((folder / "plan.json").read_text())
    assert [row["predicted"]["step_seconds"] for row in result["variants"]] == [p["seconds_per_step"] for p in planned]
    finals = {run["seed"] for run in runs if run["final"]}
    assert finals == {0, 1} and not finals & {run["seed"] for run in runs if not run["final"]}


def test_equal_flops_mean_fewer_steps_for_the_wide_one(finished):
    _, result, settings, _ = finished
    base, _, wide = result["variants"]
    config = named(modern(settings), [], [("wide", ["blocks.0.ffn.d_ff=200"])])[1].config
    assert wide["flops_per_token"] == training_flops_per_token(config, 16) > base["flops_per_token"]
    assert wide["steps"] == round(6 * base["flops_per_token"] / wide["flops_per_token"]) < base["steps"]


def test_differences_are_those_of_the_scores(finished):
    _, result, _, _ = finished
    base, relu, _ = (row["bits_per_byte"] for row in result["variants"])
    assert result["comparisons"][0]["differences"] == [a - b for a, b in zip(relu, base, strict=True)]
    assert all(c["p_holm"] >= c["p"] for c in result["comparisons"])
    assert any("Holm" in note and "2 comparisons" in note for note in result["notes"])


def test_progress_counts_the_runs_and_says_how_long(finished):
    said = finished[3]
    assert said[-1].startswith("run 12 of 12, 0 s left: wide, seed 1")


@pytest.mark.slow
def test_a_stopped_comparison_goes_on_and_ends_the_same(finished, tmp_path, monkeypatch):
    _, result, settings, _ = finished
    variants = named(modern(settings), ["relu_mlp"], [("wide", ["blocks.0.ffn.d_ff=200"])])
    inner, count = room.train_once, 0

    def stops(*arguments, **options):
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        return inner(*arguments, **options)

    monkeypatch.setattr(room, "train_once", stops)
    with pytest.raises(KeyboardInterrupt):
        ablate([], variants, settings, out=tmp_path / "run", device="cpu")
    assert len(read_runs(tmp_path / "run" / "runs.jsonl")) == 7
    with open(tmp_path / "run" / "runs.jsonl", "a") as file:
        file.write('{"variant": "base", "fin')  # what a kill leaves
    count = 100
    on = resume(tmp_path / "run", device="cpu")
    assert count == 105, "five runs were left, and no finished one was trained again"
    assert on["comparisons"] == result["comparisons"]
    assert len(read_runs(tmp_path / "run" / "runs.jsonl")) == 12, "what a kill left is gone from the file"


def test_divergence_is_counted_and_not_raised(tiny, tmp_path, monkeypatch):
    settings = replace(tiny, tune_share=0.0)
    inner = room.train_once

    def explodes(config, *arguments, **options):
        rate = 1e30 if not config.blocks[0].ffn.gated else options.pop("rate")
        return inner(config, *arguments, **{**options, "rate": rate})

    monkeypatch.setattr(room, "train_once", explodes)
    result = ablate([], named(modern(settings), ["relu_mlp"]), settings, out=tmp_path / "run", device="cpu")
    base, relu = result["variants"]
    assert (base["diverged"], relu["diverged"]) == (0, 2) and relu["bits_per_byte"] == [None, None]
    assert result["comparisons"][0]["verdict"] == "worse"


def test_every_text_is_on_one_side(finished):
    folder = finished[0]
    held_out, validation = (json.loads((folder / "data" / f"{n}.json").read_text()) for n in ("held_out", "validation"))
    assert held_out and validation and not set(held_out) & set(validation)
    assert sum(len(text.encode()) for text in held_out) <= 1_500


def test_folders_that_are_in_use_or_none_are_refused(finished, tiny, tmp_path):
    variants = ladder(modern(tiny))
    with pytest.raises(ValueError, match="already holds something.*--resume"):
        ablate([], variants, tiny, out=finished[0])
    with pytest.raises(ValueError, match="nothing to go on with"):
        resume(tmp_path)
    with pytest.raises(ValueError, match="at least two"):
        ablate([], variants[:1], tiny, out=tmp_path / "x")
    with pytest.raises(ValueError, match="'2017' is compared with, but not among"):
        ablate([], variants[1:], tiny, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_run_that_is_there_twice_counts_once(finished, tmp_path):
    lines = (finished[0] / "runs.jsonl").read_bytes()
    (tmp_path / "runs.jsonl").write_bytes(lines + lines.splitlines(keepends=True)[3])
    assert read_runs(tmp_path / "runs.jsonl") == read_runs(finished[0] / "runs.jsonl")


@pytest.mark.parametrize("line", ["[]", "{}", "nonsense"])
def test_a_line_that_is_no_run_is_refused(line, tmp_path):
    (tmp_path / "runs.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match="not that of a run"):
        read_runs(tmp_path / "runs.jsonl")


def test_a_finished_folder_is_left_as_it_is(finished):
    folder, result, _, _ = finished
    before = (folder / "runs.jsonl").read_bytes()
    assert resume(folder, device="cpu") == result
    assert (folder / "runs.jsonl").read_bytes() == before


def test_lengths_are_scored_by_each_seed_and_learned_positions_cannot(tiny, tmp_path):
    settings = replace(tiny, tune_share=0.0, lengths=(1, 2, 4), scalings=("linear", "yarn"))
    result = ablate([], named(modern(settings), ["learned", "nope"]), settings, out=tmp_path / "run", device="cpu")
    base, learned, nope = (row["lengths"] for row in result["variants"])
    assert list(base) == ["as trained", "linear", "yarn"] and list(learned) == list(nope) == ["as trained"]
    assert [len(seeds) for seeds in base["yarn"]] == [2, 2, 2] and base["yarn"][2] != base["as trained"][2]
    assert base["yarn"][0] == pytest.approx(base["as trained"][0], abs=1e-6)
    assert learned["as trained"][1:] == [[None, None], [None, None]] and None not in learned["as trained"][0]
    ends = [[end for end, _ in row["positions"]["as trained"]] for row in result["variants"]]
    assert ends == [[2, 4, 8, 16, 32, 64], [2, 4, 8, 16], [2, 4, 8, 16, 32, 64]]
    assert any(note.startswith("Lengths: ") and "concatenated" in note for note in result["notes"])


def test_a_text_that_does_not_fill_the_longest_is_refused_before_training(tiny, tmp_path):
    settings = replace(tiny, lengths=(1, 1000))
    with pytest.raises(ValueError, match=r"the held-out text has .* tokens, and 16,000 are the least"):
        ablate([], named(modern(settings), ["nope"]), settings, out=tmp_path / "run", device="cpu")
