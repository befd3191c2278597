"""SGD, AdaGrad and RMSProp: by hand, against torch to the bit, and what sets them apart."""

import pytest
import torch

from groundup.optim import SGD, AdaGrad, RMSProp
from tests.optim.stepping_cases import run

COUPLED = dict(weight_decay=0.1, decoupled=False)


def parameter(values, gradient, dtype=torch.float64):
    p = torch.nn.Parameter(torch.tensor(values, dtype=dtype))
    p.grad = torch.tensor(gradient, dtype=dtype)
    return p


def moved(optimizer, p, steps):
    """The parameter after each step, with the gradient that it has."""
    values = []
    for _ in range(steps):
        optimizer.step()
        values.append(p.item())
    return values


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda p: SGD(p, 1e-2, **COUPLED), lambda p: torch.optim.SGD(p, 1e-2, weight_decay=0.1)),
        (lambda p: SGD(p, 1e-2, 0.9, **COUPLED), lambda p: torch.optim.SGD(p, 1e-2, 0.9, weight_decay=0.1)),
        (
            lambda p: SGD(p, 1e-2, 0.9, nesterov=True, **COUPLED),
            lambda p: torch.optim.SGD(p, 1e-2, 0.9, nesterov=True, weight_decay=0.1),
        ),
        (lambda p: AdaGrad(p, 1e-2, **COUPLED), lambda p: torch.optim.Adagrad(p, 1e-2, weight_decay=0.1)),
        (
            lambda p: AdaGrad(p, 1e-2, initial=0.5, eps=1e-3),
            lambda p: torch.optim.Adagrad(p, 1e-2, initial_accumulator_value=0.5, eps=1e-3),
        ),
        (lambda p: RMSProp(p, 1e-2, **COUPLED), lambda p: torch.optim.RMSprop(p, 1e-2, weight_decay=0.1)),
        (
            lambda p: RMSProp(p, 1e-2, 0.9, 1e-6, momentum=0.8, **COUPLED),
            lambda p: torch.optim.RMSprop(p, 1e-2, 0.9, 1e-6, momentum=0.8, weight_decay=0.1),
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch_to_the_bit_over_100_steps(ours, theirs, dtype):
    for a, b in zip(run(ours, dtype)[0], run(theirs, dtype)[0], strict=True):
        assert torch.equal(a, b)


def test_momentum_by_hand():
    """g = 1 throughout, mu = 0.5: m is 1, 1.5, 1.75, and the look ahead adds half of it to g."""
    p, q = parameter([0.0], [1.0]), parameter([0.0], [1.0])
    assert moved(SGD([p], 1.0, 0.5), p, 3) == [-1.0, -2.5, -4.25]
    assert moved(SGD([q], 1.0, 0.5, nesterov=True), q, 3) == [-1.5, -3.25, -5.125]


def test_a_steady_gradient_ends_at_a_rate_of_one_over_one_minus_mu():
    p = parameter([0.0], [1.0])
    values = moved(SGD([p], 0.1, 0.9), p, 200)
    assert values[-1] - values[-2] == pytest.approx(-0.1 / (1 - 0.9), rel=1e-6)


def test_both_decays_are_one_without_momentum_and_two_with_it():
    def after(momentum, decoupled):
        p = parameter([2.0], [0.5])
        return moved(SGD([p], 0.1, momentum, weight_decay=0.3, decoupled=decoupled), p, 3)[-1]

    assert after(0.0, True) == pytest.approx(after(0.0, False), rel=1e-12)
    assert abs(after(0.9, True) - after(0.9, False)) > 0.01


def test_adagrad_by_hand_slows_as_one_over_root_t():
    """With |g| = 3 the sum is 9 t, so step t moves by lr * 3 / (3 sqrt(t))."""
    p = parameter([0.0], [-3.0])
    values = moved(AdaGrad([p], lr=0.1, eps=0.0), p, 4)
    expected = [0.1, 0.1 * (1 + 2**-0.5), 0.1 * (1 + 2**-0.5 + 3**-0.5), 0.1 * (1.5 + 2**-0.5 + 3**-0.5)]
    assert values == pytest.approx(expected, rel=1e-12)


def test_adagrad_keeps_a_rare_coordinate_fast():
    p = parameter([0.0, 0.0], [1.0, 0.0])
    optimizer = AdaGrad([p], lr=0.1)
    for step in range(100):
        p.grad = torch.tensor([1.0, 1.0 if step == 99 else 0.0], dtype=torch.float64)
        before = p.detach().clone()
        optimizer.step()
    assert (before - p).tolist() == pytest.approx([0.01, 0.1], rel=1e-6)


def test_rmsprop_by_hand_begins_with_a_leap():
    """v = 0.01 g^2 after the first step, so it moves by lr / sqrt(0.01) = 10 lr whatever g is."""
    p = parameter([0.0, 0.0], [5.0, -1e-3])
    RMSProp([p], lr=0.01, alpha=0.99, eps=0.0).step()
    assert p.tolist() == pytest.approx([-0.1, 0.1], rel=1e-9)


def test_rmsprop_forgets_and_adagrad_does_not():
    p, q = parameter([0.0], [1.0]), parameter([0.0], [1.0])
    first, second = RMSProp([p], lr=0.01, alpha=0.9), AdaGrad([q], lr=0.01)
    fast, slow = moved(first, p, 300), moved(second, q, 300)
    assert fast[-2] - fast[-1] == pytest.approx(0.01, rel=1e-6)
    assert slow[-2] - slow[-1] == pytest.approx(0.01 / 300**0.5, rel=1e-6)


@pytest.mark.parametrize("factor", [1e-3, 50.0])
def test_a_scaled_gradient_moves_adagrad_and_rmsprop_alike_and_sgd_not(factor):
    def step(kind, gradient, **options):
        p = parameter([1.0, 2.0], [g * gradient for g in (3.0, -4.0)])
        kind([p], lr=0.1, **options).step()
        return p.tolist()

    for kind in (AdaGrad, RMSProp):
        assert step(kind, factor, eps=0.0) == pytest.approx(step(kind, 1.0, eps=0.0), rel=1e-12)
    assert step(SGD, factor) != pytest.approx(step(SGD, 1.0), rel=1e-3)


def test_nesterov_needs_a_momentum():
    with pytest.raises(ValueError, match="SGD nesterov=True, momentum=0"):
        SGD([parameter([1.0], [1.0])], lr=0.1, nesterov=True)


@pytest.mark.parametrize(
    ("kind", "options"), [(SGD, {"momentum": 1.0}), (AdaGrad, {"initial": -1.0}), (RMSProp, {"alpha": 1.0})]
)
def test_impossible_options_are_refused(kind, options):
    with pytest.raises(ValueError, match=f"{kind.__name__} {next(iter(options))}="):
        kind([parameter([1.0], [1.0])], lr=0.1, **options)
