import math

import pytest
import torch

from groundup.optim import (
    BatchRamp,
    ClockDecay,
    InverseSqrt,
    OneCycle,
    constant,
    cooldown,
    cosine,
    linear,
    warmup_stable_decay,
)


def test_warmup_stable_decay_by_hand():
    schedule = warmup_stable_decay(warmup=2, total=10, decay_fraction=0.4)
    expected = [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert [schedule(s) for s in range(10)] == pytest.approx(expected)
    assert schedule(10) == schedule(99) == 0.0


def test_linear_and_constant_by_hand():
    assert [linear(0, 4)(s) for s in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert [constant(4)(s) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_equals_torch():
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([p], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1)
    ours = cosine(warmup=0, total=50, final=0.1)
    for step in range(50):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("make", [warmup_stable_decay, cosine, linear])
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (1, 1), (0, 2), (10, 100), (100, 100), (7, 41)])
def test_rises_then_never_rises_again_and_moves_every_step(make, warmup, total):
    values = [make(warmup, total)(s) for s in range(total)]
    assert all(0 < v <= 1 for v in values)
    assert values[:warmup] == sorted(values[:warmup])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)


def test_a_branch_shares_the_plateau():
    long, short = warmup_stable_decay(10, 1000), warmup_stable_decay(10, 200)
    assert all(long(s) == short(s) for s in range(160))
    assert short(180) < long(180) == 1.0


@pytest.mark.parametrize("arguments", [(20, 10), (-1, 10), (0, 10, 2.0), (0, 10, 0.2, -1.0)])
def test_impossible_schedules_are_refused(arguments):
    with pytest.raises(ValueError):
        warmup_stable_decay(*arguments)


def simulate(schedule, deadline, step_seconds):
    """Run against a made-up clock: multipliers used until one more step would be late."""
    now, step, used = 0.0, 0, []
    while now + step_seconds(step) <= deadline:
        schedule.observe(step, deadline - now, step_seconds(step))
        used.append(schedule(step))
        now += step_seconds(step)
        step += 1
    return used


def test_clock_decay_with_a_steady_clock_is_warmup_stable_decay():
    used = simulate(ClockDecay(warmup=5, decay_fraction=0.25), deadline=100.0, step_seconds=lambda _: 1.0)
    assert len(used) == 100
    decay = [v for v in used[5:] if v < 1.0]
    assert len(decay) in (24, 25)
    expected = [1 - (i + 1) / (len(decay) + 1) for i in range(len(decay))]
    assert decay == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("slow", [0.5, 2.0])
def test_clock_decay_arrives_although_the_pace_changes(slow):
    used = simulate(ClockDecay(0, 0.3), deadline=100.0, step_seconds=lambda s: 0.1 if s < 800 else 0.1 * slow)
    tail = [v for v in used if v < 1.0]
    assert tail == sorted(tail, reverse=True)
    assert 0 < used[-1] < 0.02


def test_clock_decay_resumes_from_its_state():
    whole, first = ClockDecay(0, 0.5), ClockDecay(0, 0.5)
    for step in range(60):
        whole.observe(step, 100.0 - step, 1.0)
        if step < 55:
            first.observe(step, 100.0 - step, 1.0)
    second = ClockDecay(0, 0.5)
    second.load_state(first.state())
    for step in range(55, 60):
        second.observe(step, 100.0 - step, 1.0)
    assert second(60) == whole(60) < 1.0
    assert math.isfinite(second(60)) and second.decay_start == whole.decay_start


def test_clock_decay_out_of_time_at_once():
    schedule = ClockDecay(0)
    schedule.observe(0, -5.0, 1.0)
    schedule.observe(1, -6.0, 1.0)
    assert 0.0 <= schedule(1) <= 1.0


def test_a_cooldown_is_what_the_trunk_would_have_followed():
    trunk = constant(warmup=5)
    branch = cooldown(trunk, at=40, steps=10)
    assert [branch(s) for s in range(40)] == [trunk(s) for s in range(40)]
    assert [branch(s) for s in (40, 45, 49, 50)] == pytest.approx([1.0, 0.5, 0.1, 0.0])
    assert [branch(s) for s in range(50)] == [warmup_stable_decay(5, 50, 0.2)(s) for s in range(50)]
    assert cooldown(warmup_stable_decay(5, 50, 0.2, final=0.1), at=30, steps=10)(40) == pytest.approx(0.1)


@pytest.mark.parametrize(("at", "steps"), [(4, 10), (41, 10), (20, 0)])
def test_a_cooldown_leaves_from_the_plateau_only(at, steps):
    with pytest.raises(ValueError, match="cooldown"):
        cooldown(warmup_stable_decay(5, 50, 0.2), at, steps)


def test_inverse_sqrt_is_vaswanis_over_its_peak():
    d_model, warmup = 512, 4000
    peak = d_model**-0.5 * warmup**-0.5
    schedule = InverseSqrt(warmup)
    for step in (1, 100, 3999, 4000, 4001, 100_000):
        rate = d_model**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert schedule(step - 1) == pytest.approx(rate / peak, rel=1e-12)
    assert schedule(warmup - 1) == 1.0 and schedule(4 * warmup - 1) == 0.5


@pytest.mark.parametrize(("total", "rise"), [(50, 0.3), (7, 0.5), (1000, 0.1)])
def test_one_cycle_equals_torch(total, rise):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=total, pct_start=rise, cycle_momentum=False
    )
    ours = OneCycle(total, rise)
    for step in range(total):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        if step < total - 1:
            theirs.step()


def test_a_batch_ramp_by_hand():
    ramp = BatchRamp(1, 4, steps=6)
    assert [ramp(step) for step in range(9)] == [1, 1, 2, 2, 3, 3, 4, 4, 4]
    assert BatchRamp(2, 2, 1)(0) == 2


@pytest.mark.parametrize(
    "make", [lambda: InverseSqrt(0), lambda: OneCycle(1), lambda: OneCycle(10, 1.0), lambda: OneCycle(9, start=2.0)]
)
def test_impossible_curves_are_refused(make):
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize("arguments", [(0, 4, 5), (4, 2, 5), (1, 4, 0)])
def test_impossible_ramps_are_refused(arguments):
    with pytest.raises(ValueError, match="BatchRamp"):
        BatchRamp(*arguments)
