"""Out of memory: real, in processes that may not grow, and made up, to the same loss."""

import os
import re
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from groundup.accounting.simulate import Moment, Simulation
from groundup.model import Transformer
from groundup.optim import AdamW
from groundup.train import AtLeast, OutOfMemory, checkpoint, next_token, rehearse, room, train
from groundup.train.room import Memory, fewest_micro_batches
from groundup.train.shortage import Rehearsals, fewest, shortage_of
from tests.train.bounded import CONFIG, GIVE_BACK_AT_ONCE, source
from tests.train.small import Batches, batch, same_weights, tiny_model

CPU_TEXT = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "3145728 bytes. Error code 12 (Cannot allocate memory)"
)
bounded_only_on_linux = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS bounds a process on Linux alone")


def bounded(folder, more_mib, steps, micro_batches, where="forward"):
    words = [folder, more_mib, steps, micro_batches, where]
    command = [sys.executable, "-m", "tests.train.bounded", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | GIVE_BACK_AT_ONCE)


@bounded_only_on_linux
@pytest.mark.slow
def test_a_forward_pass_that_does_not_fit_is_told_and_the_remedy_works(tmp_path):
    done = bounded(tmp_path, 60, 3, 1)
    assert done.returncode == 1 and "OutOfMemory: step 2 does not fit in memory with micro_batches=1" in done.stderr
    assert "in its forward" in done.stderr and re.search(r"asked for by aten\.\w+", done.stderr)
    assert re.search(r"activations 8\d,\d{3},\d{3}", done.stderr)  # of 98.7 million bytes in all
    remedies = re.findall(r"  (\d)\. .*?: [\d,]+ bytes(, which may still)?", done.stderr)
    assert [number for number, _ in remedies] == ["1", "2", "3"] and not remedies[0][1]
    latest = checkpoint.latest(tmp_path / "checkpoints")
    assert latest is not None and latest.name == "step-1" and checkpoint.load(latest, verified=True).step == 1
    parts = re.search(r"1\. micro_batches=(\d+) \(same loss\)", done.stderr)
    assert parts is not None
    again = bounded(tmp_path / "again", 60, 3, parts[1])
    assert again.returncode == 0, again.stderr


@bounded_only_on_linux
@pytest.mark.slow
def test_auto_goes_on_with_the_same_losses(tmp_path):
    done = bounded(tmp_path, 60, 3, "auto")
    assert done.returncode == 0, done.stderr
    assert "micro_batches=1 did not fit in the forward" in done.stderr
    model = Transformer(CONFIG)
    batches = source(3, 32)
    free = train(model, batches, next_token, AdamW(model, lr=1e-3), 3, progress=False)
    assert [float(x) for x in done.stdout.strip("[]\n").split(",")] == pytest.approx(free.losses, abs=1e-5)


@bounded_only_on_linux
@pytest.mark.slow
def test_an_optimizer_whose_states_do_not_fit_is_told(tmp_path):
    done = bounded(tmp_path, 60, 1, 1, "optimizer")
    assert done.returncode == 1 and "in its optimizer" in done.stderr
    assert "optimizer 104,894,620" in done.stderr  # two states of 13.1 million parameters
    assert "num_layers = 2" in done.stderr and not (tmp_path / "checkpoints").exists()


class Failing:
    """An objective that does not fit while it is given more than `most` rows."""

    def __init__(self, most, error=None):
        self.most, self.rows, self.error = most, [], error or RuntimeError(CPU_TEXT)

    def __call__(self, model, b):
        self.rows.append(len(b["tokens"]))
        if len(b["tokens"]) > self.most and not isinstance(b["tokens"], FakeTensor):
            raise self.error
        return next_token(model, b)


def run_with(objective, **options):
    model = tiny_model()
    run = train(model, Batches(), objective, AdamW(model, lr=1e-2), 4, progress=False, **options)
    return model, run


def test_the_same_step_is_repeated_with_the_same_loss(monkeypatch):
    monkeypatch.setattr(room, "available_bytes", lambda device: 0)  # unknown: nothing is rehearsed
    free_model, free = run_with(next_token)
    objective = Failing(1)
    model, run = run_with(objective, micro_batches="auto")
    assert objective.rows == [4, 2, *[1] * 16]  # 1 and 2 micro-batches failed, 4 are kept
    assert run.losses == pytest.approx(free.losses, abs=1e-6)
    for p, q in zip(model.parameters(), free_model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
    assert same_weights(model, run_with(next_token, micro_batches=4)[0])


def test_it_is_said_and_dropout_draws_again_what_it_drew(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(room, "available_bytes", lambda device: 0)

    def late(model, b):
        """Fails when the forward pass has drawn its random numbers."""
        loss = next_token(model, b)
        if len(b["tokens"]) > 2:
            raise RuntimeError(CPU_TEXT)
        return loss

    def weights(objective, **options):
        model = tiny_model()
        model.dropout = 0.2
        torch.manual_seed(3)
        train(model, Batches(), objective, AdamW(model, lr=1e-2), 3, progress=False, **options)
        return model

    assert same_weights(weights(next_token, micro_batches=2), weights(late, micro_batches="auto", run_dir=tmp_path))
    assert "micro_batches=1 did not fit in the forward" in caplog.text
    assert "out of memory" in (tmp_path / "events.jsonl").read_text()


def test_one_row_that_does_not_fit_ends_it_with_an_autopsy(unchecked):
    with pytest.raises(OutOfMemory, match=r"(?s)step 1 does not fit.*micro_batches=4.*3,145,728 bytes more.*recompute"):
        run_with(Failing(0), micro_batches="auto")
    with pytest.raises(OutOfMemory, match=r"(?s)micro_batches=1: .*1\. micro_batches=\d \(same loss\)"):
        run_with(Failing(2))


def test_an_objective_that_cannot_be_rehearsed_does_not_hide_the_shortage():
    class Odd(Failing):
        def __call__(self, model, b):
            b["tokens"].numpy()  # which a tensor without storage has not
            return super().__call__(model, b)

    with pytest.raises(OutOfMemory, match=r"(?s)does not fit.*could not be told.*try micro_batches=2"):
        run_with(Odd(2))


def test_the_optimizer_too():
    model = tiny_model()
    optimizer = AdamW(model, lr=1e-2)
    optimizer.new_state = lambda p, group: (_ for _ in ()).throw(MemoryError())
    with pytest.raises(OutOfMemory, match="in its optimizer some bytes more"):
        train(model, Batches(), next_token, optimizer, 1, micro_batches="auto", progress=False)


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match="memory of elephants"):
        run_with(Failing(0, RuntimeError("the memory of elephants")), micro_batches="auto")
    assert shortage_of(RuntimeError("shapes differ")) is None and shortage_of(ValueError("out of memory")) is None


def test_what_errors_say():
    cpu = shortage_of(RuntimeError(CPU_TEXT))
    assert cpu is not None and cpu.asked == 3_145_728 and cpu.phase == "forward"
    gpu = shortage_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has"), "optimizer")
    assert gpu is not None and gpu.asked == 3 << 29 and gpu.phase == "optimizer"
    bare = shortage_of(MemoryError())
    assert bare is not None and bare.asked is None and bare.text == "MemoryError"


def test_the_fewest_micro_batches_that_fit(unchecked):
    model = tiny_model()
    optimizer, b = AdamW(model, lr=1e-2), batch(0, rows=4)
    steps = Rehearsals(model, next_token, optimizer, [b], 1.0)
    there = sum(p.nbytes for p in model.parameters())  # the optimizer has no states yet: they take of what is free
    peak = rehearse(model, next_token, optimizer, b, micro_batches=2).peak_bytes
    assert fewest_micro_batches(steps, peak - there) == 2
    assert fewest_micro_batches(steps, peak - there - 1) == 4


def test_auto_asks_how_much_is_free(monkeypatch):
    model = tiny_model()
    b = batch(0, rows=4)
    steps = Rehearsals(model, next_token, AdamW(model, lr=1e-2), [b], 1.0)
    needed = steps.simulate(2).peak_bytes - sum(p.nbytes for p in model.parameters())
    monkeypatch.setattr(room, "available_bytes", lambda device: int(needed / room.FREE_SHARE) + 2)
    memory = Memory("auto")
    memory.choose(steps)
    assert memory.micro_batches == 2
    monkeypatch.setattr(room, "available_bytes", lambda device: 1)
    memory.choose(steps)
    assert memory.micro_batches == 2  # only once


def test_a_number_to_begin_with_gives_way_and_is_told_in_the_end():
    objective = Failing(1)
    _, run = run_with(objective, micro_batches=AtLeast(2))
    assert objective.rows[:2] == [2, 1] and run.micro_batches == 4
    assert run_with(next_token, micro_batches=AtLeast(2))[1].micro_batches == 2


def test_a_run_that_goes_on_keeps_its_micro_batches(monkeypatch, tmp_path):
    monkeypatch.setattr(room, "available_bytes", lambda device: 0)
    go_on = {"run_dir": tmp_path, "micro_batches": "auto", "progress": False}

    def part(objective, steps, **options):
        model = tiny_model()
        return train(model, Batches(), objective, AdamW(model, lr=1e-2), steps, **go_on, **options)

    assert part(Failing(2), 2).micro_batches == 2
    objective = Failing(4)  # there would be room for all rows again
    assert part(objective, 4, resume=True).micro_batches == 2
    assert set(objective.rows) == {2}


@pytest.mark.parametrize("wrong", [0, -1, "many", 1.5, AtLeast(0)])
def test_wrong_numbers_are_refused(wrong, unchecked):
    with pytest.raises(ValueError, match=r"micro_batches=.*at least 1, or 'auto'"):
        run_with(next_token, micro_batches=wrong)


def test_doubling_stops_at_the_most():
    tried = []

    def needs(number):
        tried.append(number)
        return Simulation([Moment("forward", "mm", 10, 10)], 0, {})

    assert fewest(needs, 1, 6, 5)[0] == 6 and tried == [1, 2, 4, 6]
