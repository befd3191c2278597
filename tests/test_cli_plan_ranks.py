"""`groundup plan --gpus N`: the table, the plan's text, the page and the check."""

import json

import pytest

from groundup.cli import main
from groundup.parallel.plan import ParallelPlan

COMMAND = ["plan", "--device", "h100", "--card", "none", "--params", "100M", "--context", "512", "--rows", "16"]


def said(capsys, *more):
    code = main([*COMMAND, *more])
    return code, capsys.readouterr()


def test_the_best_plan_comes_first_and_is_printed_as_it_is_read(capsys):
    code, out = said(capsys, "--gpus", "4", "--json")
    assert code == 0
    *lines, last = out.out.strip().splitlines()
    found = json.loads(last)
    plan = ParallelPlan.parse(found["plan"])
    assert plan.size == 4 and f"plan: {found['plan']}" in lines
    seconds = [each["seconds"] for each in found["ranked"] if each["fits"]]
    assert seconds == sorted(seconds) and found["seconds"] == seconds[0]
    assert any("by the data sheet" in line for line in found["figures"])
    assert any("messages of tensor +" in line for line in lines) and "ways to divide them" in out.out


def test_a_plan_that_was_asked_for_is_drawn_and_built(capsys, tmp_path):
    page = tmp_path / "step.html"
    code, out = said(capsys, "--gpus", "4", "--plan", "shard=2 tensor=2", "--timeline", str(page), "--build-check")
    assert code == 0 and page.stat().st_size > 10_000
    assert "plan: shard=2 tensor=2" in out.out and "built as rank 0 of 4" in out.out and "simulated:" in out.out


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (["--gpus", "0"], "--gpus 0: expected at least 1"),
        (["--gpus", "4", "--plan", "data=2"], "is for 2 ranks, --gpus says 4"),
        (["--gpus", "4", "--plan", "dta=4"], "dta"),
        (["--gpus", "4", "--model", "llama-3-8b"], "with --model NAME or --params N"),
        (["--gpus", "4", "--budget", "1h"], "--budget plans a budget"),
        (["--timeline", "x.html"], "is for a plan of ranks: add --gpus N"),
    ],
)
def test_wrong_use_is_said(capsys, more, fault):
    code, out = said(capsys, *more)
    assert code == 1 and fault in out.err
