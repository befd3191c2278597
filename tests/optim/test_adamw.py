import copy
from typing import Any

import pytest
import torch

from groundup.optim import AdamW


def problem(dtype=torch.float32, seed=0):
    """Parameters of awkward shapes and a function that gives them new random gradients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(41, 7), (129,), (1,), (3, 5, 2), ()]
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]

    def new_gradients(step):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=dtype) * 0.1 ** (step % 5)

    return params, new_gradients


def run(make, dtype, steps=100):
    params, new_gradients = problem(dtype)
    optimizer = make(params)
    for step in range(steps):
        new_gradients(step)
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        optimizer.step()
    return params, optimizer


def test_first_step_by_hand():
    """t=1: m-hat = g and v-hat = g^2, so a step moves by lr * sign(g) after the decay of lr * wd."""
    p = torch.nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    p.grad = torch.tensor([0.5, -3.0], dtype=torch.float64)
    AdamW([p], lr=0.1, betas=(0.9, 0.99), eps=0.0, weight_decay=0.5, fused=False).step()
    expected = torch.tensor([2.0 * 0.95 - 0.1, -1.0 * 0.95 + 0.1], dtype=torch.float64)
    torch.testing.assert_close(p.data, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fused", [False, True])
def test_equals_torch_to_the_bit_over_100_steps(dtype, fused):
    options: dict[str, Any] = dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    ours, _ = run(lambda p: AdamW(p, fused=fused, **options), dtype)
    other: dict[str, Any] = dict(fused=True) if fused else dict(foreach=False)
    theirs, _ = run(lambda p: torch.optim.AdamW(p, **options, **other), dtype)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_fused_equals_the_reference(dtype, tolerance):
    fused, _ = run(lambda p: AdamW(p, lr=1e-2, fused=True), dtype)
    plain, _ = run(lambda p: AdamW(p, lr=1e-2, fused=False), dtype)
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_never_happened(fused):
    def every_step(skip_bad):
        params, new_gradients = problem()
        optimizer = AdamW(params, lr=1e-2, fused=fused)
        for step in range(10):
            new_gradients(step)
            bad = step in (0, 4)
            if bad:
                params[0].grad = torch.full_like(params[0], float("nan"))
            if skip_bad or not bad:
                optimizer.step(skip=torch.tensor(float(bad)))
        return params, optimizer

    with_skips, state = every_step(skip_bad=True)
    without, expected = every_step(skip_bad=False)
    for a, b in zip(with_skips, without, strict=True):
        assert torch.equal(a, b)
        assert float(state.state[a]["step"]) == float(expected.state[b]["step"]) == 8


def test_state_is_two_moments_and_a_step_per_parameter_and_loads_back():
    params, optimizer = run(lambda p: AdamW(p, lr=1e-2), torch.float32, steps=3)
    state = optimizer.state_dict()
    assert set(state["state"][0]) == {"exp_avg", "exp_avg_sq", "step"}
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = AdamW(copies, lr=1.0)
    other.load_state_dict(copy.deepcopy(state))
    for group in (params, copies):
        for p in group:
            p.grad = torch.ones_like(p)
    optimizer.step()
    other.step()
    assert all(torch.equal(a, b) for a, b in zip(params, copies, strict=True))


def test_parameters_without_gradient_are_left_alone():
    a, b = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    a.grad = torch.ones(2)
    optimizer = AdamW([a, b], lr=0.1)
    optimizer.step()
    assert torch.equal(b.data, torch.ones(2)) and b not in optimizer.state
    assert not torch.equal(a.data, torch.ones(2))


def test_accepts_a_model_and_a_closure():
    model = torch.nn.Linear(3, 2)
    optimizer = AdamW(model, lr=0.1)
    assert [group["name"] for group in optimizer.param_groups] == ["decay", "no_decay"]

    def closure():
        loss = model(torch.ones(1, 3)).sum()
        loss.backward()
        return loss

    before = model.weight.detach().clone()
    assert isinstance(optimizer.step(closure), torch.Tensor)
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize(
    "options", [{"lr": -1.0}, {"lr": float("nan")}, {"lr": 1.0, "betas": (0.9, 1.0)}, {"lr": 1.0, "eps": -1e-8}]
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="AdamW"):
        AdamW([torch.nn.Parameter(torch.ones(1))], **options)
