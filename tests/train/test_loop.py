import json
import logging
import os
import signal
import threading
import time

import pytest
import torch

from groundup.optim import AdamW, ClockDecay, constant, muon_adamw, warmup_stable_decay
from groundup.train import Loss, next_token, read_metrics, train
from groundup.train.feed import Feed, count_tokens, split
from tests.train.small import Batches, batch, same_weights, tiny_model, tiny_run


def test_learns_to_count():
    _, _, run = tiny_run(80, schedule=warmup_stable_decay(5, 80))
    assert run.losses[0] > 3.0 and run.losses[-1] < 0.3
    assert run.step == len(run.losses) == 80 and run.stopped_by == "steps"
    assert run.tokens == 80 * 4 * 8


def test_equals_a_loop_written_by_hand():
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0, foreach=False)
    schedule = warmup_stable_decay(3, 12)
    for step in range(12):
        tokens = batch(step)["tokens"]
        logits = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.param_groups[0]["lr"] = 1e-2 * schedule(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    other = tiny_model()
    mine = AdamW(other.parameters(), lr=1e-2, weight_decay=0.0)
    tiny_run(12, model=other, optimizer=mine, schedule=schedule)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parts", [2, 3, 4, 9])
def test_micro_batches_give_the_same_gradient(parts):
    """Masks make micro-batches weigh differently; dividing by the total weight makes that right."""
    masks = {i: {"mask": (torch.rand(4, 9) < 0.7).float()} for i in range(6)}
    whole, _, one = tiny_run(6, source=Batches(changed=masks))
    cut, _, many = tiny_run(6, source=Batches(changed=masks), micro_batches=parts)
    assert many.losses == pytest.approx(one.losses, rel=1e-5)
    for p, q in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_a_micro_batch_without_weight_adds_nothing():
    mask = torch.ones(4, 9)
    mask[2:] = 0
    masked, _, run = tiny_run(1, source=Batches(changed={0: {"mask": mask}}), micro_batches=2)
    half = [{"tokens": batch(0)["tokens"][:2]}]
    alone, _, _ = tiny_run(1, source=half)
    assert run.skipped == 0
    assert same_weights(masked, alone)


def test_several_batches_per_step_are_one_large_batch():
    two = [batch(0), batch(1)]
    one = [{"tokens": torch.cat([b["tokens"] for b in two])}]
    a, _, run = tiny_run(1, source=two, batches_per_step=2)
    b, _, _ = tiny_run(1, source=one, micro_batches=2)
    assert same_weights(a, b) and run.tokens == 64


def test_the_batch_size_can_ramp():
    source = Batches()
    _, _, run = tiny_run(4, source=source, batches_per_step=lambda step: step + 1)
    assert source.at == 1 + 2 + 3 + 4 and run.tokens == 10 * 32


@pytest.mark.parametrize("make", [AdamW, muon_adamw])
def test_queueing_a_step_ahead_changes_nothing(make):
    results = []
    for lookahead in (0, 1, 3):
        model = tiny_model()
        tiny_run(15, model=model, optimizer=make(model, lr=1e-2), lookahead=lookahead, every={4: lambda *_: None})
        results.append(model)
    if make is AdamW:
        assert same_weights(results[0], results[1]) and same_weights(results[0], results[2])
    for p, q in zip(results[0].parameters(), results[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)


def test_hooks_see_the_model_after_their_step():
    seen = []

    def look(step, model, run):
        seen.append((step, run.step, len(run.losses), model.embed.weight.detach().clone()))
        model.eval()

    model, _, _ = tiny_run(7, every={3: look, 7: look}, lookahead=1)
    assert [s[:3] for s in seen] == [(3, 3, 3), (6, 6, 6), (7, 7, 7)]
    assert torch.equal(seen[-1][3], model.embed.weight)
    three, _, _ = tiny_run(3)
    assert torch.equal(seen[0][3], three.embed.weight)
    assert model.training


def test_rates_are_put_back():
    _, optimizer, _ = tiny_run(5)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-2}


def test_a_finite_source_ends_the_run():
    _, _, run = tiny_run(None, source=[batch(i) for i in range(5)])
    assert run.step == 5 and run.stopped_by == "data"


def test_metrics_have_one_record_per_interval(tmp_path):
    _, _, run = tiny_run(10, run_dir=tmp_path, log_every=4, micro_batches=2, flops_per_token=1e6, peak_flops=1e12)
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records] == [4, 8, 10]
    assert records[0]["loss"] == pytest.approx(sum(run.losses[:4]) / 4)
    assert records[2]["loss"] == pytest.approx(sum(run.losses[8:]) / 2)
    keys = "step loss lr grad_norm tokens tokens_per_second mfu epoch seconds skipped noise_scale lse logit_max"
    assert set(keys.split()) == set(records[0])
    assert records[0]["mfu"] == pytest.approx(records[0]["tokens_per_second"] * 1e6 / 1e12)
    assert records[1]["noise_scale"] is None or records[1]["noise_scale"] > 0


def test_more_than_the_peak_raises_the_peak_and_says_so(tmp_path):
    """A peak of 1 FLOP/s is beaten by any machine: MFU stays a share, of the most that was reached so far."""
    tiny_run(10, run_dir=tmp_path, log_every=2, flops_per_token=1e6, peak_flops=1.0)
    records = read_metrics(tmp_path)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    raised = [event["step"] for event in events if event["event"] == "peak raised"]
    assert records[0]["mfu"] == 1.0 and raised[0] == 2
    assert all(0 < record["mfu"] <= 1 for record in records)
    fastest = 0.0
    for record in records:
        fastest = max(fastest, record["tokens_per_second"])
        assert record["mfu"] == pytest.approx(record["tokens_per_second"] / fastest)
        assert (record["step"] in raised) == (record["tokens_per_second"] == fastest)


def test_an_objectives_metrics_are_logged_as_means(tmp_path):
    def objective(model, b):
        loss = next_token(model, b)
        return Loss(loss.total, loss.weight, {"double": 2 * loss.weight})

    model = tiny_model()
    train(
        model, Batches(), objective, AdamW(model, lr=1e-2), 2, run_dir=tmp_path, log_every=1, micro_batches=2,
        progress=False,
    )  # fmt: skip
    assert [r["double"] for r in read_metrics(tmp_path)] == [2.0, 2.0]


def test_progress_lines_when_there_is_no_terminal(capsys):
    tiny_run(3, progress=True)
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith("step 1  loss ") and "tok/s" in line


# ---- the clock ----


def test_the_deadline_ends_the_run_and_the_decay(tmp_path, monkeypatch):
    now = [0.0]

    def takes_a_while(model, b):
        now[0] += 0.005
        return next_token(model, b)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    model, schedule = tiny_model(), ClockDecay(warmup=2, decay_fraction=0.3)
    run = train(
        model, Batches(), takes_a_while, AdamW(model, lr=1e-2), None, schedule=schedule, deadline=1.0,
        run_dir=tmp_path, log_every=1, progress=False,
    )  # fmt: skip
    assert run.stopped_by == "clock" and 150 <= run.step <= 201
    rates = [r["lr"] for r in read_metrics(tmp_path)]
    assert schedule.decay_start is not None and rates[schedule.decay_start // 2] == 1e-2
    assert rates[schedule.decay_start :] == sorted(rates[schedule.decay_start :], reverse=True)
    assert rates[-1] < 5e-3


def test_a_passed_deadline_makes_no_step():
    _, _, run = tiny_run(10, deadline=time.monotonic() - 1.0)
    assert run.step == 0 and run.stopped_by == "clock"


# ---- signals ----


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(tmp_path, number, caplog):
    def strike(step, model, run):
        if step == 5:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with caplog.at_level(logging.WARNING):
        _, _, run = tiny_run(100, every={1: strike}, run_dir=tmp_path)
    assert run.stopped_by == "interrupt" and run.step == 5
    assert (tmp_path / "checkpoints" / "step-5").is_dir()
    assert signal.getsignal(number) is before
    resumed, _, _ = tiny_run(12, run_dir=tmp_path, resume=True)
    whole, _, _ = tiny_run(12)
    assert same_weights(resumed, whole)


def test_a_signal_in_the_last_step_is_not_lost(tmp_path):
    def strike(step, model, run):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    _, _, run = tiny_run(5, every={1: strike}, run_dir=tmp_path)
    assert run.stopped_by == "interrupt" and run.step == 5
    _, _, resumed = tiny_run(5, run_dir=tmp_path, resume=True)
    assert resumed.stopped_by == "steps" and resumed.step == 5


def test_a_second_signal_stops_at_once():
    def strike(step, model, run):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tiny_run(100, every={2: strike})


def test_stop_asks_for_the_end_from_outside():
    calls = iter([False] * 4 + [True] * 9)
    _, _, run = tiny_run(100, stop=lambda: next(calls))
    assert run.step == 4 and run.stopped_by == "interrupt"


def test_trains_in_a_thread_where_signals_cannot_be_caught():
    done = []
    thread = threading.Thread(target=lambda: done.append(tiny_run(3)[2].step))
    thread.start()
    thread.join()
    assert done == [3]


# ---- options ----


def test_options_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="deadline"):
        tiny_run(1, schedule=ClockDecay(0))
    with pytest.raises(ValueError, match="run_dir"):
        tiny_run(1, resume=True)
    with pytest.raises(ValueError, match="run_dir"):
        tiny_run(1, checkpoint_every=1)
    model = tiny_model()
    with pytest.raises(ValueError, match="lookahead"):
        tiny_run(1, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), lookahead=1)


def test_any_torch_optimizer_works():
    model = tiny_model()
    _, _, run = tiny_run(5, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), schedule=constant())
    assert run.losses[-1] < run.losses[0]


def test_a_token_outside_the_vocabulary_is_named():
    tokens = batch(0)["tokens"].clone()
    tokens[2, 3] = 99
    with pytest.raises(ValueError, match=r"row 2, position 3: token id 99 .* 0\.\.30"):
        tiny_run(1, source=[{"tokens": tokens}])


def test_recomputing_activations_changes_no_bit():
    plain, _, _ = tiny_run(5)
    model = tiny_model()
    model.recompute = True
    tiny_run(5, model=model)
    assert same_weights(plain, model)


def test_two_runs_are_the_same_to_the_bit():
    (a, _, first), (b, _, second) = tiny_run(10), tiny_run(10)
    assert same_weights(a, b) and first.losses == second.losses


def test_out_of_memory_says_what_to_do():
    def objective(model, b):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    model = tiny_model()
    with pytest.raises(MemoryError, match="try micro_batches=4"):
        train(model, Batches(), objective, AdamW(model, lr=1e-2), 1, micro_batches=2, progress=False)


# ---- the feed ----


def test_split_and_count():
    parts = split({"tokens": torch.zeros(5, 9, dtype=torch.long), "mask": torch.ones(5, 9)}, 3)
    assert [len(p["tokens"]) for p in parts] == [2, 2, 1]
    assert len(split(batch(0), 9)) == 4
    pair = {"chosen": torch.zeros(2, 5, dtype=torch.long), "chosen_mask": torch.ones(2, 5, dtype=torch.long)}
    assert count_tokens([batch(0), pair]) == 32 + 8


def test_groups_given_back_come_first_and_in_order():
    feed = Feed([batch(i) for i in range(4)], torch.device("cpu"))
    first, second = feed.take(1), feed.take(1)
    assert first is not None and second is not None
    feed.give_back([first, second])
    assert feed.owes and feed.take(1) is first and feed.take(1) is second and not feed.owes
    assert feed.take(1) is not None and feed.take(2) is None


def test_a_source_without_a_cursor_is_fast_forwarded():
    batches = [batch(i) for i in range(6)]
    feed = Feed(batches, torch.device("cpu"))
    feed.take(2)
    feed.take(1)
    other = Feed(batches, torch.device("cpu"))
    other.load_state(feed.state())
    group = other.take(1)
    assert group is not None and torch.equal(group[0]["tokens"], batches[3]["tokens"])
