"""AdamW's update in Triton against the readable one, over many tensors and steps."""

import pytest
import torch

from groundup.kernels import adamw_step, backend
from groundup.kernels.triton import adamw as twin
from groundup.optim.adamw import AdamW, adamw_
from tests.kernels.triton.ahead import Kernel, compile_ahead

pytest.importorskip("triton")
OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
SHAPES = [(41, 7), (129,), (1,), (), (3, 0), (1100,), (48, 48)]


def state(device, dtype=torch.float32, shapes=SHAPES):
    """Parameters, moments of zeros, steps of zero."""
    params = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
    moments = [[torch.zeros_like(p) for p in params] for _ in range(2)]
    return params, *moments, [torch.zeros((), device=device) for _ in params]


def copies(tree):
    return [[t.clone() for t in tensors] for tensors in tree]


def steps_of(update, tree, count, drawn=torch.float32):
    """`count` steps with gradients of very different sizes, rounded to the type `drawn`."""
    params, means, squares, steps = copies(tree)
    generator = torch.Generator().manual_seed(3)
    for k in range(count):
        grads = [(torch.randn(p.shape, generator=generator) * 0.1 ** (k % 5)).to(drawn).to(p) for p in params]
        torch._foreach_add_(steps, 1)  # pyright: ignore[reportPrivateImportUsage]
        update(params, grads, means, squares, steps)
    return params, means, squares


def by_triton(*tensors, **more):
    with backend("triton"):
        adamw_step(*tensors, **OPTIONS, **more)


def by_the_formula(params, grads, means, squares, steps):
    for p, g, m, v, t in zip(params, grads, means, squares, steps, strict=True):
        adamw_(p, g, m, v, int(t), **OPTIONS)


@pytest.mark.parametrize("count", [1, 12])
def test_as_the_formula_in_float64(device, count):
    start = state(device)
    got = steps_of(by_triton, start, count)
    exact = steps_of(by_the_formula, [[t.double() for t in tensors] for tensors in start], count)
    for ours, theirs in zip(got, exact, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("step", [1, 2, 300, 10**6])
@pytest.mark.parametrize("beta", [0.9, 0.999, 0.0])
def test_the_correction_of_the_bias_keeps_its_digits(device, step, beta):
    """1 - 0.999 in float32 has four digits left. With m = v = g = 1 and no eps, the update is made of corrections."""
    one = lambda value: [torch.full((4,), value, device=device)]  # noqa: E731
    options = {"lr": 1.0, "betas": (0.5, beta), "eps": 0.0, "weight_decay": 0.0}
    params, steps = one(0.0), [torch.full((), float(step), device=device)]
    with backend("triton"):
        adamw_step(params, one(1.0), one(1.0), one(1.0), steps, **options)
    expected = -((1 - beta**step) ** 0.5) / (1 - 0.5**step)
    torch.testing.assert_close(params[0], torch.full_like(params[0], expected), rtol=1e-6, atol=0)


def test_in_bfloat16_it_rounds_once(device):
    start = state(device, torch.bfloat16)
    got = steps_of(by_triton, start, 1, torch.bfloat16)
    exact = steps_of(by_the_formula, [[t.double() for t in tensors] for tensors in start], 1, torch.bfloat16)
    for ours, theirs in zip(got, exact, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=2**-8, atol=1e-30)


def test_a_skipped_step_changes_nothing_even_with_a_bad_gradient(device):
    params, means, squares, steps = state(device)
    before = copies((params, means, squares))
    grads = [torch.full_like(p, float("nan")) for p in params]
    by_triton(params, grads, means, squares, steps, skip=torch.ones((), device=device))
    for kept, now in zip(before, (params, means, squares), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    by_triton(params, [p.clone() for p in params], means, squares, steps, skip=torch.zeros((), device=device))
    assert not torch.equal(before[0][0], params[0])


def test_tables_are_made_once_for_the_same_tensors(device):
    twin._tables.clear()
    params, means, squares, steps = state(device)
    grads = [torch.ones_like(p) for p in params]
    for _ in range(3):
        by_triton(params, grads, means, squares, steps)
    assert len(twin._tables) == 2  # those of lengths that 16 divides, and the others
    for _ in range(twin.MOST_TABLES + 3):
        by_triton(params, [torch.ones_like(p) for p in params], means, squares, steps)
    assert len(twin._tables) <= twin.MOST_TABLES


def test_a_transposed_parameter_with_its_moments_is_fine_and_a_mixture_is_refused(device):
    param = torch.randn(5, 3, device=device).T
    tree = [param], [torch.zeros_like(param)], [torch.zeros_like(param)], [torch.ones((), device=device)]
    grad = torch.randn_like(param)
    exact = copies(tree)
    by_triton([param], [grad], *tree[1:])
    adamw_(exact[0][0], grad, exact[1][0], exact[2][0], 1, **OPTIONS)
    torch.testing.assert_close(param, exact[0][0])
    with pytest.raises(ValueError, match="in one order"):
        by_triton([param], [grad.contiguous()], *tree[1:])
    with pytest.raises(ValueError, match="one launch takes one type"):
        by_triton([param], [grad.bfloat16()], *tree[1:])


@pytest.mark.parametrize("bad", [None, 1])
def test_the_optimizer_by_the_kernel_is_the_optimizer_by_torch(device, bad):
    """Four steps, one of them bad and skipped: its count is taken back too."""

    def run(name):
        params = [torch.nn.Parameter(p) for p in copies([state(device)[0]])[0]]
        generator, optimizer = torch.Generator().manual_seed(5), AdamW(params, lr=1e-2)
        for step in range(4):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator).to(p) * (float("nan") if step == bad else 1.0)
            with backend(name):
                optimizer.step(skip=torch.full((), float(step == bad), device=device))
        return params, [float(optimizer.state[p]["step"]) for p in params]

    torch.manual_seed(1)
    ours, our_steps = run("triton")
    torch.manual_seed(1)
    theirs, their_steps = run("reference")
    assert our_steps == their_steps == [4 - (bad is not None)] * len(ours)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


@pytest.mark.gpu
def test_real_sizes_on_a_gpu():
    start = state(torch.device("cuda"), shapes=[(4096, 4096), (4096,), (50_257, 768)])
    got = steps_of(by_triton, start, 3)
    exact = steps_of(by_the_formula, [[t.double() for t in tensors] for tensors in start], 3)
    for a, b in zip(got[0], exact[0], strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=2e-6)


def test_compiled_for_hopper_without_spills():
    signature = {"like": "*fp32:16", "tensors": "*i64:16", "programs": "*i32:16", "skip": "*fp32"}
    numbers = ("shrink", "lr", "towards_mean", "beta2", "towards_square", "log_beta1", "log_beta2", "eps")
    signature |= {name: "fp32" for name in numbers}
    constants = {"SKIPPABLE": True, "EVEN": True, "BLOCK": 1024}
    (made,) = compile_ahead([Kernel("adamw", "_adamw", signature, constants)])
    assert made.spilled_bytes == 0 and made.registers <= 64, made
