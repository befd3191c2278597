"""What a run says of itself: log records, measurements, the distance to what was predicted."""

import json

import pytest

from groundup.train.run import Run


def test_measured_against_predicted():
    run = Run(step=4, losses=[4.0, 3.0, 2.0, 1.0], tokens=400, seconds=9.0, step_seconds=[5.0, 1.0, 2.0, 1.0])
    measured = run.measured()
    assert measured["step_seconds"] == 1.0 and measured["tokens_per_second"] == 100.0 and measured["loss"] == 2.5
    rows = run.against({"step_seconds": 0.8, "loss": 2.0})
    assert [row["error"] for row in rows] == pytest.approx([0.25, 0.25])
    with pytest.raises(ValueError, match="a run measures steps"):
        run.against({"energy": 1.0})
    assert Run().measured()["step_seconds"] is None
    assert json.loads(json.dumps(measured)) == measured


def test_a_record_covers_its_interval():
    run = Run(
        step=4, losses=[9.0, 9.0, 2.0, 1.0], tokens=400, seconds=9.0, step_seconds=[5.0, 5.0, 1.0, 3.0], skipped=1
    )
    record = run.record(2, mfu_per_speed=0.01)
    assert (record["loss"], record["tokens_per_second"], record["mfu"]) == (1.5, 50.0, 0.5)
    assert (record["step"], record["tokens"], record["seconds"], record["skipped"]) == (4, 400, 9.0, 1)
    assert run.record(2, None)["mfu"] is None


def test_a_resumed_run_measures_its_own_steps_only():
    """Its first record may reach back over steps that another process made: those have no times here."""
    run = Run(step=10, losses=[1.0] * 10, tokens=1000, step_seconds=[2.0])
    assert run.record(5, None)["tokens_per_second"] == 50.0
    assert Run(step=10, losses=[1.0] * 10, tokens=1000).record(5, None)["tokens_per_second"] == 0.0
    assert run.measured()["step_seconds"] == 2.0  # there is no later step to leave the first out for


def test_what_is_carried_over():
    run = Run(step=3, losses=[3.0, 2.0, 1.0], tokens=30, seconds=1.5, skipped=2, step_seconds=[0.5] * 3)
    other = Run()
    other.load_state(json.loads(json.dumps(run.state())), list(run.losses))
    assert other == Run(step=3, losses=[3.0, 2.0, 1.0], tokens=30, seconds=1.5, skipped=2)


def test_a_prediction_of_zero_has_no_relative_error():
    run = Run(step=2, losses=[1.0, 1.0], tokens=20, step_seconds=[1.0, 1.0])
    rows = run.against({"loss": 0.0, "peak_memory_bytes": 4.0})
    assert [(row["measured"], row["error"]) for row in rows] == [(1.0, None), (0, -1.0)]
    assert Run().against({"loss": 1.0})[0]["error"] is None
