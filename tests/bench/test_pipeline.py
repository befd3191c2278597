"""Which cases can run, what a line says, and that real ranks that wait have the bubble of the formula."""

import json

import pytest

from groundup.bench import REGISTRY, pipeline


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


@pytest.mark.slow
def test_ranks_that_wait_have_the_bubble_of_the_formula(capsys):
    assert "pipeline" in REGISTRY
    # Long waits: a machine that others use is late by milliseconds whenever a rank wakes up.
    assert pipeline.main(["--ranks", "4", "--microbatches", "4", "--seconds", "0.08", "--steps", "4"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    lines = [row for row in record["rows"] if row["stages"] == "waits"]
    assert [row["schedule"] for row in lines] == ["gpipe", "1f1b", "interleaved"]
    for row in lines:  # what else runs on the machine can only delay
        assert -0.05 < min(row["bubbles"]) - row["formula"] < 0.05, row


def test_options_out_of_range_are_errors():
    for wrong in (["--ranks", "1"], ["--microbatches", "0"], ["--layers", "3"], ["--seconds", "0"]):
        with pytest.raises(SystemExit):
            pipeline.parse(wrong)
