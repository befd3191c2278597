"""What the cards of the page say: settings with units, and predictions as they came."""

import doctest
import json

import pytest

from groundup.report import facts
from groundup.report.run import read_run


def training(run):
    return dict(facts.facts(read_run(run), None)["Training"])


def test_training_shows_what_came_beside_what_was_planned(fake_run):
    assert training(fake_run) == {
        "batch": "32 sequences",
        "learning rate of the hidden matrices": "0.003",
        "computed again in the backward pass": "1 block",
        "warm-up": "20 steps",
        "step time": "420 ms (planned: 360 ms)",
        "training time": "8 min 25 s (planned: 8 min 40 s)",
        "length": "1,200 steps (planned: 1,300 steps)",
        "trained on": "9,830,400 tokens",
        "passes over the text": "3.20 (planned: 3.40)",
        "bits per byte, held-out": "1.951 (planned: 1.930)",
        "bytes per token": "planned: 4.200",
        "peak memory": "2.84 GiB (planned: 2.89 GiB)",
        "parameters": "5,678,901",
    }


def test_before_training_everything_predicted_is_marked_as_planned(fake_run):
    for name in ("result.json", "training.json"):
        (fake_run / name).unlink()
    (fake_run / "evaluation.json").write_text(json.dumps({"tokens": 130_000, "bits_per_byte": 1.951}))
    lines = training(fake_run)
    assert lines["trained on"] == "planned: 9,830,400 tokens"
    assert lines["step time"] == "planned: 360 ms"
    assert lines["batch"] == "32 sequences"
    assert lines["bits per byte, held-out"] == "1.951 (planned: 1.930)"


@pytest.mark.parametrize("value", [None, "x", True, 10**400, [], {}])
def test_a_plan_may_hold_anything(fake_run, value):
    plan = json.loads((fake_run / "plan.json").read_text())
    (fake_run / "plan.json").write_text(json.dumps({**plan, "plan": dict.fromkeys(plan["plan"], value)}))
    facts.facts(read_run(fake_run), None)


def test_what_the_plan_calls_training_is_shown_as_it_is(fake_run):
    plan = json.loads((fake_run / "plan.json").read_text())
    (fake_run / "plan.json").write_text(json.dumps({**plan, "training": {"step_seconds": 0.5}}))
    assert training(fake_run) == {"step time": "500 ms"}


def test_one_more_event_is_one(fake_run):
    event = json.dumps({"step": 1, "event": "skipped", "text": "loss nan"}) + "\n"
    (fake_run / "events.jsonl").write_text(event * (facts.MOST_EVENTS + 1))
    assert facts.notes(read_run(fake_run))[-1] == "and 1 more event, in events.jsonl"


def test_examples_in_docstrings():
    assert doctest.testmod(facts).failed == 0


def test_an_mfu_of_1_is_explained(fake_run):
    said = "the peak was measured too low"
    result = json.loads((fake_run / "result.json").read_text())
    for mfu, expected in ((0.99, False), (1.0, True)):
        result["measured"]["mfu"] = mfu
        (fake_run / "result.json").write_text(json.dumps(result))
        assert any(said in note for note in facts.notes(read_run(fake_run))) is expected
