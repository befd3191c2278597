import errno
import json
import os
import threading
import time

import pytest
import torch
import torch.distributed as dist

from groundup.optim import AdamW, ClockDecay, muon_adamw, warmup_stable_decay
from groundup.train import checkpoint, next_token, read_metrics, train
from groundup.train.feed import Feed
from groundup.train.guard import Guard
from groundup.train.log import MetricsLog
from groundup.train.noise import NoiseScale
from groundup.train.resume import Resumable, Saver
from groundup.train.room import Memory
from groundup.train.snapshot import capture, check_weights, differences, restore
from tests.distributed import run_ranks
from tests.train.small import Batches, batch, same_weights, tiny_model, tiny_run

TIMES = {"seconds", "tokens_per_second"}


def records(folder):
    return [{k: v for k, v in r.items() if k not in TIMES} for r in read_metrics(folder)]


@pytest.mark.parametrize("make", [AdamW, muon_adamw])
@pytest.mark.parametrize("cut", [1, 4, 10, 19])
def test_a_resumed_run_is_the_whole_run(tmp_path, make, cut):
    options = dict(checkpoint_every=4, micro_batches=2)

    def run(folder, steps, **more):
        model = tiny_model()
        optimizer = make(model, lr=1e-2)
        return tiny_run(steps, model=model, optimizer=optimizer, run_dir=folder, **options, **more)

    whole, optimizer, one = run(tmp_path / "whole", 20)
    run(tmp_path / "cut", cut)
    torch.manual_seed(123)
    resumed, other, two = run(tmp_path / "cut", 20, resume=True)
    assert same_weights(whole, resumed) and one.losses == two.losses
    assert one.tokens == two.tokens and records(tmp_path / "whole") == records(tmp_path / "cut")
    a, b = capture(whole, optimizer), capture(resumed, other)
    assert all(torch.equal(a[k], b[k]) for k in a if not k.startswith("rng"))


def test_later_records_and_a_torn_line_are_dropped(tmp_path):
    tiny_run(10, run_dir=tmp_path, checkpoint_every=4)
    for name in ("step-10",):
        os.rename(tmp_path / "checkpoints" / name, tmp_path / "gone")
    with open(tmp_path / "metrics.jsonl", "ab") as f:
        f.write(b'{"step": 11, "loss"')
    tiny_run(12, run_dir=tmp_path, checkpoint_every=4, resume=True)
    assert [r["step"] for r in read_metrics(tmp_path)] == list(range(1, 13))


def test_resuming_twice_from_one_checkpoint_and_resuming_a_finished_run(tmp_path):
    tiny_run(6, run_dir=tmp_path / "a")
    start = tmp_path / "a" / "checkpoints" / "step-6"
    first, _, _ = tiny_run(9, resume=start, run_dir=tmp_path / "b")
    second, _, _ = tiny_run(9, resume=start)
    assert same_weights(first, second)
    content = (tmp_path / "b" / "metrics.jsonl").read_bytes()
    again, _, run = tiny_run(9, resume=True, run_dir=tmp_path / "b")
    assert run.step == 9 and same_weights(again, first)
    assert (tmp_path / "b" / "metrics.jsonl").read_bytes() == content
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "b" / "checkpoints")] == ["step-9"]


def test_a_branch_decays_from_a_checkpoint_of_the_plateau(tmp_path):
    tiny_run(10, run_dir=tmp_path, schedule=warmup_stable_decay(2, 1000))
    plateau = tmp_path / "checkpoints" / "step-10"
    branch, _, _ = tiny_run(20, resume=plateau, schedule=warmup_stable_decay(2, 20, 0.5))
    whole, _, _ = tiny_run(20, schedule=warmup_stable_decay(2, 20, 0.5))
    assert same_weights(branch, whole)


def test_starting_anew_in_a_used_folder_is_refused(tmp_path):
    tiny_run(2, run_dir=tmp_path)
    with pytest.raises(ValueError, match="resume=True"):
        tiny_run(2, run_dir=tmp_path)
    _, _, run = tiny_run(2, run_dir=tmp_path / "new", resume=True)
    assert run.step == 2


def test_a_damaged_newest_checkpoint_costs_its_interval_only(tmp_path):
    whole, _, _ = tiny_run(12)
    tiny_run(12, run_dir=tmp_path, checkpoint_every=4)
    (tmp_path / "checkpoints" / "step-12" / "state.json").write_text("{}")
    resumed, _, run = tiny_run(12, run_dir=tmp_path, checkpoint_every=4, resume=True)
    assert same_weights(whole, resumed) and run.step == 12
    assert checkpoint.latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-12.1"


def test_another_model_optimizer_or_config_is_refused_with_the_difference(tmp_path):
    tiny_run(2, run_dir=tmp_path, config={"tokenizer": "abc", "seed": 1})
    given = {"config": {"tokenizer": "abc", "seed": 1}, "run_dir": tmp_path, "resume": True}
    with pytest.raises(ValueError, match="model.num_layers: 2 in the checkpoint, 3 now"):
        tiny_run(3, model=tiny_model(num_layers=3), **given)
    with pytest.raises(ValueError, match="given.tokenizer: 'abc' in the checkpoint, 'xyz' now"):
        tiny_run(3, **given | {"config": {"tokenizer": "xyz", "seed": 1}})
    model = tiny_model()
    with pytest.raises(ValueError, match="optimizer"):
        tiny_run(3, model=model, optimizer=muon_adamw(model), **given)
    source = Batches()
    source.tokens_per_batch = 99
    with pytest.raises(ValueError, match="tokens_per_batch"):
        tiny_run(3, source=source, **given)


def test_differences_are_dotted_paths():
    a = {"x": 1, "list": [1, {"y": 2}], "gone": True}
    b = {"x": 1, "list": [1, {"y": 3}], "new": None}
    assert differences(a, b) == [
        "gone: True in the checkpoint, None now",
        "list[1].y: 2 in the checkpoint, 3 now",
    ]
    assert differences(a, a) == [] and len(differences([1], [1, 2])) == 1


def test_weights_that_do_not_fit_are_all_named():
    model = tiny_model()
    good = {name: t.clone() for name, t in model.state_dict().items()}
    cases = {
        "missing head.weight": {k: v for k, v in good.items() if k != "head.weight"},
        "unknown to the model: extra": good | {"extra": torch.ones(1)},
        "vocabularies differ": good | {"embed.weight": torch.ones(99, 16)},
        "head.weight is torch.float64": good | {"head.weight": good["head.weight"].double()},
        "final_norm.weight holds NaN": good | {"final_norm.weight": torch.full((16,), float("nan"))},
    }
    for message, weights in cases.items():
        with pytest.raises(ValueError, match=message):
            check_weights(weights, model, "here")
    check_weights(good, model, "here")


def test_optimizer_state_that_does_not_fit_is_refused_before_anything_changes():
    model, optimizer, _ = tiny_run(2)
    tensors = {k: v.clone() for k, v in capture(model, optimizer).items()}
    fresh = tiny_model(seed=1)
    before = fresh.embed.weight.detach().clone()
    key = "optimizer.exp_avg.embed.weight"
    for fault in ({key: torch.ones(2, 2)}, {key: torch.full_like(tensors[key], float("inf"))}):
        with pytest.raises(ValueError, match="exp_avg of embed.weight"):
            restore(tensors | fault, fresh, AdamW(fresh, lr=1e-2))
    with pytest.raises(ValueError, match="unknown parameters: stranger"):
        restore(tensors | {"optimizer.step.stranger": torch.ones(())}, fresh, AdamW(fresh, lr=1e-2))
    assert torch.equal(fresh.embed.weight, before)


def test_random_generators_and_the_clocks_schedule_are_carried(tmp_path):
    schedule = ClockDecay(0, 0.5)
    schedule.load_state({"decay_start": 3, "multiplier": 0.25})
    tiny_run(3, run_dir=tmp_path, schedule=schedule, deadline=float("inf"))
    state = torch.get_rng_state()
    torch.manual_seed(5)
    other = ClockDecay(0, 0.5)
    tiny_run(3, run_dir=tmp_path, schedule=other, deadline=float("inf"), resume=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert other.decay_start == 3 and other.multiplier == schedule.multiplier


# ---- a disk that refuses ----


def test_failed_saves_are_said_survived_and_tried_again(tmp_path, monkeypatch):
    real, failures = checkpoint.write_tensors, []

    def full(path, tensors):
        if "step-10" in str(path) or "step-11" in str(path) or "step-12" in str(path):
            failures.append(path)
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    model, _, run = tiny_run(20, run_dir=tmp_path, checkpoint_every=5)
    assert len(failures) == 3 and run.step == 20
    names = sorted(os.listdir(tmp_path / "checkpoints"))
    assert names == ["step-13", "step-15", "step-20"]
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["save failed"] * 3 and "No space" in events[0]["text"]
    assert same_weights(model, tiny_run(20)[0])


# ---- in the background ----


def test_what_is_saved_in_the_background_is_what_was_there_at_the_save(tmp_path, monkeypatch):
    """File by file the checkpoints of a run that waits, though three steps went by before each was written."""
    real, went_on, saving = checkpoint.save, threading.Event(), []

    def late(folder, step, **given):
        assert threading.current_thread() is not threading.main_thread()
        saving.append(step)
        assert step == 20 or went_on.wait(60)
        went_on.clear()
        return real(folder, step, **given)

    tiny_run(20, run_dir=tmp_path / "waits", checkpoint_every=5, keep=9)
    monkeypatch.setattr(checkpoint, "save", late)
    hooks = {1: lambda step, model, run: went_on.set() if step % 5 == 3 else None}
    tiny_run(20, run_dir=tmp_path / "goes on", checkpoint_every=5, keep=9, save_in_background=True, every=hooks)
    assert saving == [5, 10, 15, 20]
    for step in saving:
        a, b = (tmp_path / name / "checkpoints" / f"step-{step}" for name in ("waits", "goes on"))
        files = sorted(path.name for path in a.glob("*.safetensors"))
        assert files and all((a / name).read_bytes() == (b / name).read_bytes() for name in files)
        states = [json.loads((folder / "state.json").read_text()) for folder in (a, b)]
        for state in states:
            state["run"] = {name: value for name, value in state["run"].items() if "seconds" not in name}
        assert states[0] == states[1]
    assert records(tmp_path / "waits") == records(tmp_path / "goes on")


def test_a_save_that_fails_in_the_background_is_told_at_the_next(tmp_path, monkeypatch):
    real = checkpoint.write_tensors

    def full(path, tensors):
        if "step-10" in str(path) or "step-20" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    model, _, run = tiny_run(20, run_dir=tmp_path, checkpoint_every=5, save_in_background=True)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-15", "step-5"] and run.step == 20
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(e["step"], e["event"]) for e in events] == [(10, "save failed"), (20, "save failed")]
    assert "No space" in events[0]["text"] and "at the next save" in events[0]["text"]
    monkeypatch.undo()
    again, _, run = tiny_run(25, run_dir=tmp_path, checkpoint_every=5, save_in_background=True, resume=True)
    assert (
        same_weights(again, tiny_run(25)[0]) and checkpoint.checkpoints(tmp_path / "checkpoints")[0].name == "step-25"
    )


def test_a_save_in_the_background_ends_before_training_does(tmp_path, monkeypatch):
    """With an error of a hook, of the save itself, and before a run goes back to its last checkpoint."""
    real = checkpoint.save

    def slow(folder, step, **given):
        time.sleep(0.2)
        return real(folder, step, **given)

    def broken(step, model, run):
        raise KeyError("a hook")

    monkeypatch.setattr(checkpoint, "save", slow)
    with pytest.raises(KeyError, match="a hook"):
        tiny_run(20, run_dir=tmp_path / "a", checkpoint_every=5, save_in_background=True, every={6: broken})
    assert checkpoint.latest(tmp_path / "a" / "checkpoints") == tmp_path / "a" / "checkpoints" / "step-5"
    monkeypatch.setattr(checkpoint, "save", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny_run(20, run_dir=tmp_path / "b", checkpoint_every=5, save_in_background=True)
    monkeypatch.setattr(checkpoint, "save", slow)
    saver = Saver(tmp_path / "c", 5, 3, in_background=True)
    _, optimizer, run = tiny_run(0, model=(model := tiny_model()))
    feed, guard, memory = Feed(Batches(), torch.device("cpu")), Guard(), Memory(1)
    parts = Resumable(model, optimizer, None, feed, guard, {}, run, NoiseScale(), memory)
    saver.save(parts, MetricsLog(None))
    assert saver.latest() == tmp_path / "c" / "checkpoints" / "step-0"
    saver.finish(parts, MetricsLog(None))


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    def spoil(step, model, run):
        with torch.no_grad():
            model.embed.weight[0, 0] = float("nan")

    tiny_run(4, run_dir=tmp_path, checkpoint_every=2, every={4: spoil})
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "checkpoints")] == ["step-2"]
    assert "embed.weight is not finite" in (tmp_path / "events.jsonl").read_text()


def a_bit_is_lost(rank, size, folder):
    """One of the lowest bits of one weight, or of one number of AdamW's, on rank 1 after step 12."""

    def run(name, strike=None, **options):
        model = tiny_model()
        optimizer = AdamW(model, lr=1e-2)
        mine = [{key: value.tensor_split(size)[rank] for key, value in batch(i, rows=6).items()} for i in range(40)]

        def hook(step, model, run):
            if strike is not None and rank == 1 and step == 12:
                strike(model, optimizer).view(-1).view(torch.int32)[3] ^= 1

        train(
            model, mine, next_token, optimizer, 20, every={1: hook}, run_dir=f"{folder}/{name}", checkpoint_every=5,
            schedule=warmup_stable_decay(3, 40), progress=False, **options,
        )  # fmt: skip
        return model

    whole = run("undisturbed")
    for name, strike in [
        ("blocks.1.ffn.up.weight", lambda model, _: model.blocks[1].ffn.up.weight.data),
        ("exp_avg_sq", lambda model, optimizer: optimizer.state[model.blocks[0].mixer.wq.weight]["exp_avg_sq"]),
    ]:
        with pytest.raises(RuntimeError, match=f"rank 1 has other bits than the others in .*{name}"):
            run(name, strike)
        dist.barrier()
        assert checkpoint.latest(f"{folder}/{name}/checkpoints").name == "step-10"
        assert same_weights(run(name, resume=True), whole)


def test_a_flipped_bit_on_one_rank_is_named_and_never_saved(tmp_path):
    run_ranks(a_bit_is_lost, 3, str(tmp_path))
