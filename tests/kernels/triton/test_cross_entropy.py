"""Cross-entropy in Triton against the reference in float64: interpreted here, compiled where a GPU is."""

import importlib
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from groundup.kernels import backend, cross_entropy, linear_cross_entropy
from tests.kernels.test_cross_entropy import OPTIONS
from tests.kernels.triton.ahead import Kernel, compile_ahead

pytest.importorskip("triton")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def gradients(function, leaves, *args, **options):
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    total, count = function(*leaves, *args, **options)
    return [total.detach(), count, *torch.autograd.grad(3 * total, leaves)]


def check(got, exact, dtype):
    """Against the largest number of each: rounding of logits, not of each small gradient, is what counts."""
    for a, b in zip(got, exact, strict=True):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a.double() / scale, b / scale, rtol=0, atol=TOLERANCE[dtype])


def targets_of(shape, vocab, device):
    """Every fourth is one that does not count."""
    targets = torch.randint(0, vocab, shape, device=device)
    return targets.masked_fill(torch.arange(targets.numel(), device=device).view(shape) % 4 == 2, -100)


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 3, 41), (5, 129), (0, 8), (2, 8200)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_against_the_reference(device, shape, dtype, z_loss):
    logits = (4 * torch.randn(*shape, device=device)).to(dtype)
    targets, weights = targets_of(shape[:-1], shape[-1], device), torch.rand(shape[:-1], device=device)
    with backend("triton"):
        got = gradients(cross_entropy, [logits], targets, weights, z_loss=z_loss)
    exact = gradients(cross_entropy.reference, [logits.double()], targets, weights.double(), z_loss=z_loss)
    assert got[0].dtype == torch.float32 and got[2].dtype == dtype
    check(got, exact, dtype)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sizes", [(1, 7, 1), (7, 41, 3)])
def test_with_the_head_against_the_reference(device, option, dtype, sizes):
    """What is rounded to 16 bits differs in order, so the reference is computed in those types, too."""
    tokens, vocab, chunk = sizes
    hidden, head = torch.randn(tokens, 16, device=device).to(dtype), torch.randn(vocab, 16, device=device).to(dtype)
    targets, weights = targets_of((tokens,), vocab, device), torch.rand(tokens, device=device)
    with backend("triton"):
        got = gradients(linear_cross_entropy, [hidden, head], targets, weights, chunk=chunk, **OPTIONS[option])
    leaves = [hidden.double(), head.double()]
    exact = gradients(linear_cross_entropy.reference, leaves, targets, weights.double(), chunk=2, **OPTIONS[option])
    check(got, exact, dtype)
    assert got[3].dtype == dtype


def test_strided_logits_and_leading_axes(device):
    x = torch.randn(82, 6, device=device).T[:, ::2].unflatten(0, (2, 3))
    hidden, head = (
        torch.randn(16, 6, device=device).T.unflatten(0, (2, 3)),
        torch.randn(32, 41, device=device).T[:, ::2],
    )
    targets = targets_of((2, 3), 41, device)
    with backend("triton"):
        check(
            gradients(cross_entropy, [x], targets), gradients(cross_entropy.reference, [x.double()], targets), x.dtype
        )
        got = gradients(linear_cross_entropy, [hidden, head], targets)
    check(got, gradients(linear_cross_entropy.reference, [hidden.double(), head.double()], targets), x.dtype)


def test_the_callers_logits_are_left_alone(device):
    """The backward pass overwrites none but its own."""
    x = torch.randn(3, 7, device=device, requires_grad=True)
    before = x.detach().clone()
    with backend("triton"):
        cross_entropy(x, torch.tensor([1, 2, 3], device=device))[0].backward()
    assert torch.equal(x.detach(), before)


def test_what_has_no_weight_is_not_even_read(device):
    """Its loss may be infinite, or no number at all."""
    x = torch.full((2, 5), float("nan"), device=device)
    x[1] = torch.arange(5.0)
    x = x.requires_grad_()
    with backend("triton"):
        total, count = cross_entropy(x, torch.tensor([-1, 4], device=device))
        total.backward()
    assert count == 1 and total.item() == pytest.approx(math.log(sum(math.exp(i) for i in range(5))) - 4, rel=1e-6)
    assert x.grad is not None and torch.equal(x.grad[0], torch.zeros(5, device=device))


def test_an_impossible_target_is_an_infinite_loss_and_huge_logits_are_no_overflow(device):
    x = torch.tensor([[0.0, float("-inf")], [1e4, -1e4]], device=device)
    with backend("triton"):
        assert cross_entropy(x[:1], torch.tensor([1], device=device))[0] == float("inf")
        assert cross_entropy(x[:1], torch.tensor([0], device=device))[0] == 0
        assert cross_entropy(x[1:], torch.tensor([1], device=device))[0] == 2e4


def test_a_target_beyond_the_vocabulary_is_not_a_number(device):
    with backend("triton"):
        assert cross_entropy(torch.zeros(1, 4, device=device), torch.tensor([4], device=device))[0].isnan()


class LargestBytes(TorchDispatchMode):
    """Of any tensor that an operation returns; the interpreter copies storages, so elements say nothing."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.most = max(self.most, tensor.numel() * tensor.element_size())
        return out


def test_logits_of_all_tokens_never_exist(device):
    tokens, vocab, chunk = 48, 200, 8
    hidden, head = (torch.randn(n, 3, device=device, requires_grad=True) for n in (tokens, vocab))
    targets = targets_of((tokens,), vocab, device)
    with backend("triton"), LargestBytes() as largest:
        linear_cross_entropy(hidden, head, targets, chunk=chunk)[0].backward()
    assert largest.most == chunk * vocab * 4


@pytest.mark.parametrize("frozen", ["hidden", "head"])
def test_what_needs_no_gradient_gets_none(device, frozen):
    leaves = {"hidden": torch.randn(5, 3, device=device), "head": torch.randn(7, 3, device=device)}
    targets = targets_of((5,), 7, device)
    both = gradients(linear_cross_entropy.reference, list(leaves.values()), targets)
    trained = leaves["head" if frozen == "hidden" else "hidden"].requires_grad_()
    with backend("triton"):
        total, _ = linear_cross_entropy(*leaves.values(), targets, chunk=2)
    total.backward()
    assert trained.grad is not None
    torch.testing.assert_close(3 * trained.grad, both[3 if frozen == "hidden" else 2], rtol=1e-4, atol=1e-5)


def test_refusals_say_why(device):
    x, targets = torch.zeros(2, 3, device=device), torch.tensor([0, 1], device=device)
    weights = torch.ones(2, device=device, requires_grad=True)
    with backend("triton"):
        with pytest.raises(ValueError, match="float64"):
            cross_entropy(x.double(), targets)
        with pytest.raises(ValueError, match="weights of tokens require a gradient"):
            cross_entropy(x, targets, weights)
        with pytest.raises(ValueError, match="weights of tokens require a gradient"):
            linear_cross_entropy(x, x, targets, weights)


def test_a_second_derivative_is_an_error_not_a_zero(device):
    x = torch.randn(2, 3, device=device, requires_grad=True)
    with backend("triton"):
        total, _ = cross_entropy(x, torch.tensor([0, 1], device=device))
        with pytest.raises(RuntimeError, match="differentiated once"):
            torch.autograd.grad(total, x, create_graph=True)


def test_chunks_by_default():
    default_chunk = importlib.import_module("groundup.kernels.triton.cross_entropy").default_chunk
    assert default_chunk(131_072, 2) == 4096  # 4096 x 131,072 x 2 bytes are 1 GiB
    assert default_chunk(10**9, 4) == 256 and default_chunk(256, 2) == 8192


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_real_sizes_on_a_gpu(dtype):
    device = torch.device("cuda")
    test_against_the_reference(device, (512, 50_257), dtype, 1e-4)
    hidden, head = (
        torch.randn(700, 256, device=device).to(dtype),
        torch.randn(50_257, 256, device=device).to(dtype) / 16,
    )
    targets = targets_of((700,), 50_257, device)
    exact = gradients(linear_cross_entropy.reference, [hidden.double(), head.double()], targets, softcap=30.0)
    for function in (linear_cross_entropy, torch.compile(linear_cross_entropy, fullgraph=True)):
        with backend("triton"):
            check(gradients(function, [hidden, head], targets, chunk=256, softcap=30.0), exact, dtype)


def test_compiled_for_hopper_without_spills():
    """In place, with everything, for a vocabulary of 131,072; and the two halves of `cross_entropy`."""
    numbers = {"n": "i32:16", "z_loss": "fp32"}
    pointers = {"logits": "*bf16:16", "targets": "*i64:16", "shares": "*fp32:16"}
    forward, backward = {"losses": "*fp32:16", "kept": "*fp32:16"}, {"gradient": "*bf16:16", "kept": "*fp32:16"}
    in_place = {"gradient": "*bf16:16", "losses": "*fp32:16", "softcap": "fp32"}
    optional = ("gradient", "losses", "kept", "softcap")
    made = compile_ahead(
        [
            Kernel(
                "cross_entropy", "_rows", pointers | numbers | given,
                {"BLOCK": 8192, **{name: None for name in optional if name not in given}}, warps=16,
            )
            for given in (forward, backward, in_place)
        ]
    )  # fmt: skip
    for kernel in made:
        assert kernel.spilled_bytes == 0 and kernel.registers <= 64, made
