import json
import math
from typing import Any

import pytest
import torch

from groundup.optim import AdamW, muon_adamw
from groundup.train import Guard, Loss, next_token, train
from groundup.train.guard import fingerprint
from tests.train.small import Batches, batch, same_weights, tiny_model, tiny_run


def poisoned(model, b):
    """`next_token`, except that a batch may carry a factor for its loss."""
    loss = next_token(model, {k: v for k, v in b.items() if k != "factor"})
    factor = b["factor"].mean() if "factor" in b else 1.0
    return Loss(loss.total * factor, loss.weight)


def factor(value):
    return {"factor": torch.full((4,), value)}


def run(steps, source, make=AdamW, **options):
    model = tiny_model()
    settings: dict[str, Any] = dict(progress=False, log_every=1) | options
    result = train(model, source, poisoned, make(model, lr=1e-2), steps, **settings)
    return model, result


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("make", [AdamW, muon_adamw])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bad", [[0], [5], [5, 6], [19]])
def test_a_run_with_bad_batches_is_the_run_without_them(lookahead, make, value, bad):
    changed = {i: factor(value) for i in bad}
    hurt, one = run(20, Batches(changed=changed), make, lookahead=lookahead)
    clean, two = run(20, Batches(left_out=bad), make, lookahead=lookahead)
    assert one.skipped == len(bad) and two.skipped == 0
    assert same_weights(hurt, clean) and one.losses == two.losses


def test_a_batch_without_any_weight_is_skipped_and_said(tmp_path):
    source = Batches(changed={2: {"mask": torch.zeros(4, 9)}})
    hurt, _, result = tiny_run(6, source=source, run_dir=tmp_path)
    clean, _, _ = tiny_run(6, source=Batches(left_out=[2]))
    assert result.skipped == 1 and same_weights(hurt, clean)
    assert "everything is masked" in (tmp_path / "events.jsonl").read_text()


def test_the_diagnosis_names_the_first_gradient_and_the_batch(tmp_path):
    def objective(model, b):
        loss = next_token(model, {"tokens": b["tokens"]})
        extra = 0.0
        if "factor" in b:
            extra = (model.blocks[1].ffn.down.weight * math.inf).sum() * 0
        return Loss(loss.total + extra, loss.weight)

    model = tiny_model()
    source = Batches(changed={3: factor(1.0)})
    train(model, source, objective, AdamW(model, lr=1e-2), 5, run_dir=tmp_path, progress=False)
    (event,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert event["step"] == 4 and event["event"] == "skip"
    assert "blocks.1.ffn.down.weight" in event["text"] and "loss nan" in event["text"]
    assert "tokens (4, 9)" in event["text"]


def test_too_many_in_a_row_stop_with_the_reason():
    source = Batches(changed={i: factor(math.nan) for i in range(3, 30)})
    with pytest.raises(FloatingPointError, match="step 4: loss nan.*4 bad steps in a row, and no checkpoint"):
        run(20, source, guard=Guard(max_in_row=3))


def test_too_many_in_a_row_go_back_and_past_the_bad_data(tmp_path):
    """Bad data from batch 7 to 10: back to the checkpoint of step 5, on with batch 11."""
    source = Batches(changed={i: factor(math.nan) for i in range(7, 11)})
    hurt, result = run(12, source, guard=Guard(max_in_row=3), run_dir=tmp_path, checkpoint_every=5, keep=9, lookahead=1)
    clean, _ = run(12, Batches(left_out=[5, 6, 7, 8, 9, 10]))
    assert same_weights(hurt, clean) and result.skipped == 4
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))


def test_a_weight_that_broke_is_restored_and_no_data_lost(tmp_path):
    struck = []

    def strike(step, model, result):
        if step == 8 and not struck:
            struck.append(step)
            with torch.no_grad():
                model.blocks[0].mixer.wq.weight[0, 0] = math.nan

    hurt, result = run(12, Batches(), every={1: strike}, run_dir=tmp_path, checkpoint_every=5)
    clean, _ = run(12, Batches())
    assert struck == [8] and result.skipped == 1 and same_weights(hurt, clean)
    event = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[0])
    assert event["event"] == "rewind" and "blocks.0.mixer.wq.weight" in event["text"]


def test_going_back_ends_too(tmp_path):
    source = Batches(changed={i: factor(math.nan) for i in range(7, 99)})
    with pytest.raises(FloatingPointError, match="went back to a checkpoint 2 times"):
        run(20, source, guard=Guard(max_in_row=1, max_rewinds=2), run_dir=tmp_path, checkpoint_every=5)


def test_a_jump_is_skipped_and_a_new_level_accepted():
    guard = Guard(window=10, max_in_row=2)
    source = Batches(changed={15: factor(50.0), **{i: factor(40.0) for i in range(20, 60)}})
    hurt, result = run(40, source, guard=guard)
    assert result.skipped == 1 + 2
    assert len(result.losses) == 40


def test_threshold_by_hand():
    guard = Guard(sigma=2.0, window=4)
    for loss in (1.0, 3.0, 1.0):
        guard.accept(loss)
    assert guard.threshold() == math.inf
    guard.accept(3.0)
    assert guard.threshold() == 2.0 + 2.0 * 1.0
    flat = Guard(sigma=6.0, window=3)
    for _ in range(5):
        flat.accept(2.0)
    assert flat.threshold() == pytest.approx(2.0 * 1.06) and len(flat.recent) == 3
    assert Guard(sigma=None, window=0).threshold() == math.inf


def test_no_false_alarm_in_ten_thousand_clean_steps():
    """Losses that fall as in training, with the noise of small batches."""
    torch.manual_seed(0)
    guard, alarms = Guard(), 0
    for step, noise in enumerate(torch.randn(10_000).tolist()):
        loss = 2.0 + 6.0 * (1 + step / 50) ** -0.5 + 0.15 * noise
        alarms += loss > guard.threshold()
        guard.accept(loss)
    assert alarms == 0


def test_state_round_trip():
    guard = Guard()
    for i in range(200):
        guard.accept(float(i))
    guard.in_row = 2
    other = Guard()
    other.load_state(json.loads(json.dumps(guard.state())))
    assert other.threshold() == guard.threshold() and other.in_row == 2


def test_fingerprints_tell_batches_apart():
    assert fingerprint([batch(0)]) == fingerprint([batch(0)]) != fingerprint([batch(1)])
    assert fingerprint([{"tokens": torch.zeros(0, 3, dtype=torch.long)}])
