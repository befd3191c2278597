"""Which cases can run, what a line says, and that real ranks run the passes whose bubble the formula gives."""

import json
import time

import pytest
import torch
from tests.distributed import run_ranks

from groundup.bench import REGISTRY, pipeline
from groundup.bench.pipeline_program import WIDTH, waits
from groundup.parallel import Pipeline, bubble_fraction, measured_bubble, schedule, simulate


def test_ranks_that_share_cores_only_wait_and_interleaving_takes_multiples():
    kinds = pipeline.cases(4, [4, 6], cores=2)
    assert kinds == [
        ("waits", "gpipe", 4, 1), ("waits", "gpipe", 6, 1), ("waits", "1f1b", 4, 1), ("waits", "1f1b", 6, 1),
        ("waits", "interleaved", 4, 2),
    ]  # fmt: skip
    assert {kind for kind, *_ in pipeline.cases(2, [4], cores=2)} == {"waits", "computes"}


def test_a_line_by_hand():
    """Two ranks, three micro-batches: 1 / 4. Were the last stage twice as slow, it would wait for one pass of the
    first alone: the ranks are busy for 3 x (3 + 6) of 2 x (3 x 6 + 3) seconds."""
    found = {"bubbles": [0.24, 0.26, 0.9], "forward": [1.0, 1.0], "backward": [2.0, 2.0], "transfer": 0.0}
    line = pipeline.row(2, ("waits", "1f1b", 3, 1), found)
    assert line["formula"] == line["simulated"] == 0.25 and line["points"] == pytest.approx(1.0)
    slow = pipeline.row(2, ("waits", "1f1b", 3, 1), found | {"forward": [1.0, 2.0], "backward": [2.0, 4.0]})
    assert slow["simulated"] == pytest.approx(1 - 27 / 42)


def passes(rank, size, cases):
    """Of each case: the passes of this rank in the order in which they ran, and the bubble that the ranks measure were
    the clock one by which every pass takes as long as it should and a message no time."""
    found = []
    for _, name, microbatches, virtual in cases:
        ranks = Pipeline(waits(0.0, virtual), name, microbatches)
        inputs = [torch.ones(1, WIDTH, requires_grad=True) for _ in range(microbatches)]
        ranks.step(inputs, lambda y, i: y.sum())
        ran = [span.action for span in ranks.timeline]
        every = [schedule(name, size, microbatches, each, virtual) for each in range(size)]
        ranks.timeline = simulate(every, 1 / virtual, 2 / virtual).ranks[rank]
        found.append((ran, measured_bubble(ranks)))
    return found


def test_real_ranks_run_the_passes_that_have_the_bubble_of_the_formula():
    cases = pipeline.cases(4, [4], cores=2)
    for rank, found in enumerate(run_ranks(passes, 4, cases)):
        for (_, name, microbatches, virtual), (ran, measured) in zip(cases, found, strict=True):
            assert ran == schedule(name, 4, microbatches, rank, virtual), (rank, name)
            assert measured == pytest.approx(bubble_fraction(4, microbatches, virtual), abs=1e-12), (rank, name)


def test_a_stage_that_waits_sleeps_twice_as_long_backward(monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    chain = torch.ones(2, requires_grad=True)
    for stage in waits(0.5, 2):
        chain = stage(chain)
    chain.sum().backward()
    assert slept == [0.25, 0.25, 0.5, 0.5]


def test_two_ranks_run_it(capsys):
    assert "pipeline" in REGISTRY
    words = ["--ranks", "2", "--microbatches", "2", "--seconds", "0.001", "--steps", "1", "--layers", "2"]
    assert pipeline.main(words) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    lines = [row for row in record["rows"] if row["stages"] == "waits"]
    assert [row["schedule"] for row in lines] == ["gpipe", "1f1b", "interleaved"]
    for row in lines:
        (measured,) = row["bubbles"]
        assert 0 < measured < 1 and row["points"] == pytest.approx(100 * (measured - row["formula"]))


def test_options_out_of_range_are_errors():
    for wrong in (["--ranks", "1"], ["--microbatches", "0"], ["--layers", "3"], ["--seconds", "0"]):
        with pytest.raises(SystemExit):
            pipeline.parse(wrong)
