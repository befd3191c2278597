"""The loss scaler: its rule by hand and against torch's, runs in fp16, and what it leaves to the guard."""

import functools
import math

import pytest
import torch

from groundup.optim import AdamW, muon_adamw
from groundup.train import Guard, Loss, LossScaler, next_token, precision, read_metrics, train
from groundup.train.scaler import LARGEST, SMALLEST
from groundup.train.snapshot import capture
from groundup.train.step import PendingValues, compute_gradients
from tests.distributed import run_ranks
from tests.train.small import Batches, Collected, batch, same_weights, tiny_model, tiny_run


def half_model(seed=0):
    model = tiny_model(seed)
    precision.apply(model, "fp16")
    return model


def test_the_rule_by_hand():
    scaler = LossScaler(initial=8.0, growth_interval=3)
    seen = []
    for overflow in (0, 0, 0, 1, 0, 0, 1, 0, 0, 0):
        scaler.update(float(overflow))
        seen.append(float(scaler.scale))
    assert seen == [8, 8, 16, 8, 8, 8, 4, 4, 4, 8]


def test_a_step_that_is_undone_changes_nothing():
    scaler = LossScaler(initial=8.0, growth_interval=2)
    scaler.update(0.0)
    before = scaler.state()
    scaler.update(torch.tensor(1.0), skip=torch.tensor(1.0))
    scaler.update(torch.tensor(0.0), skip=torch.tensor(1.0))
    assert scaler.state() == before == {"scale": 8.0, "good": 1}


def test_the_scale_stays_within_what_fp16_can_use():
    scaler = LossScaler(initial=2 * SMALLEST, growth_interval=1)
    for _ in range(3):
        scaler.update(1.0)
    assert float(scaler.scale) == SMALLEST
    inf = torch.tensor(math.inf)
    assert not scaler.overflowed(torch.tensor(1.0), inf)  # no smaller scale would help: a bad step
    scaler.load_state({"scale": LARGEST, "good": 0})
    scaler.update(0.0)
    assert float(scaler.scale) == LARGEST
    assert scaler.overflowed(torch.tensor(1.0), inf) and not scaler.overflowed(inf, inf)
    assert scaler.overflowed(torch.tensor(1.0), torch.tensor(math.nan))


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="2\\^40"):
        LossScaler(initial=0.0)
    with pytest.raises(ValueError, match="at least 1"):
        LossScaler(growth_interval=0)


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.5, -0.25]))


def slope(model, b):
    """Infinite gradients where the batch says so; the loss stays finite."""
    y = (model.w * b["x"]).sum()
    y.register_hook(lambda gradient: gradient * b["factor"])
    return Loss(y.square(), torch.tensor(1.0))


def test_torchs_scaler_does_the_same_on_a_scripted_sequence():
    generator = torch.Generator().manual_seed(5)
    script = [math.inf if i in (0, 1, 6, 11, 12) else math.nan if i == 9 else 1.0 for i in range(20)]
    batches = [{"x": torch.randn(2, generator=generator), "factor": torch.tensor(f)} for f in script]
    ours, theirs = Line(), Line()
    scaler = LossScaler(initial=1024.0, growth_interval=3)
    oracle = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)  # type: ignore[attr-defined]
    mine, other = (torch.optim.SGD(m.parameters(), lr=0.01) for m in (ours, theirs))
    for b in batches:
        vector, names = compute_gradients(ours, slope, [b], math.inf, scaler)
        values = PendingValues(vector, names).read()
        assert values.metrics["loss_scale"] == oracle.get_scale()
        if not values.overflow:
            mine.step()
        scaler.update(float(values.overflow))
        mine.zero_grad()
        oracle.scale(slope(theirs, b).total).backward()
        oracle.step(other)
        oracle.update()
        other.zero_grad()
        assert torch.equal(ours.w, theirs.w) and float(scaler.scale) == oracle.get_scale()
    assert float(scaler.scale) != 1024.0


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_power_of_two_changes_no_bit_of_an_fp32_run(micro_batches):
    plain, _, one = tiny_run(6, micro_batches=micro_batches)
    scaled, _, two = tiny_run(6, micro_batches=micro_batches, scaler=LossScaler(2.0**10, growth_interval=2))
    assert same_weights(plain, scaled) and one.losses == two.losses and two.overflows == 0


def test_the_noise_scale_does_not_see_the_scale():
    kept = []
    for scaler in (None, LossScaler(2.0**7)):
        sink = Collected()
        tiny_run(4, micro_batches=2, scaler=scaler, sinks=[sink])
        kept.append(sink.records[-1]["noise_scale"])
    assert kept[0] == kept[1] is not None


def tiny_loss(model, b):
    """Such as a mean over a hundred million tokens that an objective has already divided by."""
    loss = next_token(model, b)
    return Loss(loss.total * 1e-8, loss.weight * 1e-8)


def zeros_among_gradients(scaler):
    model = half_model()
    compute_gradients(model, tiny_loss, [batch(0)], math.inf, scaler)
    grads = [p.grad for p in model.blocks.parameters() if p.grad is not None]
    return sum(int((g == 0).sum()) for g in grads) / sum(g.numel() for g in grads)


def test_small_gradients_vanish_without_a_scale_and_not_with_one():
    """The lecture's 1e-8 is 0 in fp16."""
    assert float(torch.tensor(1e-8).half()) == 0.0
    assert zeros_among_gradients(None) > 0.9
    assert zeros_among_gradients(LossScaler(2.0**20)) < 0.05


def test_fp16_learns_as_fp32_does_and_finds_its_scale(tmp_path, caplog):
    scaler = LossScaler(2.0**30, growth_interval=20)
    model, _, run = tiny_run(60, model=half_model(), run_dir=tmp_path, scaler=scaler, schedule=None)
    _, _, full = tiny_run(60, schedule=None)
    assert 10 <= run.overflows < 25 and run.step == 60 and run.skipped == 0
    assert all(math.isfinite(loss) for loss in run.losses) and all(torch.isfinite(p).all() for p in model.parameters())
    # The first steps went into finding the scale, so it is compared with where fp32 was so many updates before.
    assert run.losses[-1] == pytest.approx(full.losses[-1 - run.overflows], abs=0.15) and run.losses[-1] < 0.3
    records = read_metrics(tmp_path)
    assert records[0]["loss_scale"] == 2.0**30 and records[0]["overflows"] == 1 and records[0]["grad_norm"] is None
    assert records[-1]["loss_scale"] < 2.0**21 and records[-1]["overflows"] == run.overflows
    # An overflow is no fault: nobody was warned, no diagnosis was made.
    assert not (tmp_path / "events.jsonl").exists() and "gradient" not in caplog.text


def test_from_a_scale_that_fits_no_update_is_lost():
    _, _, run = tiny_run(40, model=half_model(), scaler=LossScaler(2.0**8))
    _, _, full = tiny_run(40)
    assert run.overflows == 0
    assert run.losses == pytest.approx(full.losses, abs=0.01)


def test_fp16_gets_a_scaler_by_itself():
    sink = Collected()
    tiny_run(2, model=half_model(), sinks=[sink])
    assert sink.records[0]["loss_scale"] == 2.0**16


@pytest.mark.parametrize("make", [AdamW, muon_adamw])
def test_a_queue_of_steps_makes_the_same_run(make):
    """An overflow in the queue undoes nothing, and a bad step behind or before it does."""
    poisoned = {n: {"mask": torch.full((4, 9), math.nan)} for n in (2, 3, 17)}
    runs = []
    for lookahead in (0, 1, 2):
        model, scaler = half_model(), LossScaler(2.0**26, growth_interval=4)
        made = tiny_run(
            24, model=model, optimizer=make(model, lr=1e-2), source=Batches(changed=poisoned), lookahead=lookahead,
            scaler=scaler,
        )  # fmt: skip
        runs.append((*made, scaler))
    (model, _, run, scaler), *others = runs
    assert run.skipped == 3 and run.overflows > 5
    for other, _, its_run, its_scaler in others:
        assert same_weights(model, other) and its_run.losses == run.losses
        assert (its_run.skipped, its_run.overflows) == (run.skipped, run.overflows)
        assert its_scaler.state() == scaler.state()


@pytest.mark.parametrize("cut", [1, 5, 13, 18])
def test_a_resumed_run_is_the_whole_run(tmp_path, cut):
    def go(folder, steps, **options):
        scaler = LossScaler(2.0**24, growth_interval=3)
        model = half_model()
        optimizer = AdamW(model, lr=1e-2)
        *_, run = tiny_run(
            steps, model=model, optimizer=optimizer, run_dir=folder, checkpoint_every=4, scaler=scaler, **options
        )
        return capture(model, optimizer), run, scaler

    whole, one, scaler = go(tmp_path / "whole", 20)
    go(tmp_path / "cut", cut)
    resumed, two, other = go(tmp_path / "cut", 20, resume=True)
    assert one.losses == two.losses and one.overflows == two.overflows > 3 and scaler.state() == other.state()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole if not k.startswith("rng"))


def test_an_fp32_run_is_continued_in_fp16_and_the_other_way_round(tmp_path):
    tiny_run(3, run_dir=tmp_path)
    _, _, run = tiny_run(5, model=half_model(), run_dir=tmp_path, resume=True)
    assert run.step == 5
    _, _, run = tiny_run(6, run_dir=tmp_path, resume=True)
    assert run.step == 6 and math.isfinite(run.losses[-1])


def infinite_gradient(model, b, everywhere=True):
    loss = next_token(model, b)
    total = loss.total * 1.0
    if everywhere or torch.equal(b["tokens"], batch(3)["tokens"]):
        total.register_hook(lambda gradient: gradient * math.inf)
    return Loss(total, loss.weight)


def test_a_gradient_that_no_scale_makes_finite_is_the_guards_in_the_end():
    with pytest.raises(FloatingPointError, match="3 bad steps in a row"):
        tiny_run(
            200, model=half_model(), objective=infinite_gradient, scaler=LossScaler(2.0**4), guard=Guard(max_in_row=2)
        )


def test_one_infinite_gradient_halves_the_scale_once():
    once = functools.partial(infinite_gradient, everywhere=False)
    scaler = LossScaler(2.0**8)
    _, _, run = tiny_run(6, model=half_model(), objective=once, scaler=scaler)
    assert (run.overflows, run.skipped, float(scaler.scale)) == (1, 0, 2.0**7)


def overflow_on_rank_one(rank, size):
    def objective(model, b):
        bad = rank == 1 and torch.equal(b["tokens"], batch(2)["tokens"].tensor_split(size)[rank])
        loss = next_token(model, b)
        total = loss.total * 1.0
        total.register_hook(lambda gradient: gradient * (math.inf if bad else 1.0))
        return Loss(total, loss.weight)

    mine = [{k: v.tensor_split(size)[rank] for k, v in batch(i).items()} for i in range(5)]
    model, scaler = half_model(), LossScaler(2.0**8)
    run = train(model, mine, objective, AdamW(model, lr=1e-2), 5, progress=False, scaler=scaler)
    return list(model.state_dict().values()), run.overflows, float(scaler.scale)


def test_an_overflow_on_one_rank_is_one_on_all():
    (weights, *rest), (others, *also) = run_ranks(overflow_on_rank_one, 2)
    assert rest == also == [1, 2.0**7]
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
