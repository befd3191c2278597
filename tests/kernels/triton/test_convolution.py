"""The short convolution in Triton against the reference: interpreted here, compiled where a GPU is."""

import pytest
import torch

from groundup.kernels import backend, causal_convolution
from tests.kernels.triton.ahead import Kernel, compile_ahead

pytest.importorskip("triton")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def inputs(device, dtype, batch, seq, channels, kernel, bias=True):
    torch.manual_seed(seq + kernel)
    shapes = [(batch, seq, channels), (channels, kernel), (channels,), (batch, kernel - 1, channels)]
    x, weight, offset, before = (torch.randn(shape, device=device).to(dtype) for shape in shapes)
    return x, weight, offset if bias else None, before


def outcome(function, tensors, resets, upstream):
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    y = function(*leaves, resets)
    wanted = [leaf for leaf in leaves if leaf is not None]
    gradients = torch.autograd.grad(y, wanted, upstream.to(y.dtype), allow_unused=True)
    nothing = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(wanted, gradients, strict=True)]
    return [y.detach(), *nothing]


def every_other(function):
    """Of channels: views with gaps."""
    return lambda x, w, b, before, resets: function(x[..., ::2], w[::2], b[::2], before[..., ::2], resets)


def check(tensors, resets=None, view=lambda function: function):
    dtype = tensors[0].dtype
    with torch.no_grad():
        upstream = torch.randn_like(view(causal_convolution.reference)(*tensors, resets))
    with backend("triton"):
        got = outcome(view(causal_convolution), tensors, resets, upstream)
    wide = [None if t is None else t.double() for t in tensors]
    exact = outcome(view(causal_convolution.reference), wide, resets, upstream.double())
    for a, b in zip(got, exact, strict=True):
        assert a.dtype == dtype
        tolerance = TOLERANCE[dtype] * max(1.0, float(b.abs().max()) if b.numel() else 0.0)
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("seq", "channels"), [(1, 1), (2, 3), (41, 65), (129, 7)])
@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_against_the_reference(device, dtype, seq, channels, kernel):
    check(inputs(device, dtype, 2, seq, channels, kernel))


def test_without_a_bias_and_without_sequences(device):
    check(inputs(device, torch.float32, 2, 9, 5, 4, bias=False))
    check(inputs(device, torch.float32, 0, 9, 5, 4))


@pytest.mark.parametrize("starts", [[0], [1, 2], [5, 33, 34, 63]])
def test_documents_do_not_see_each_other(device, starts):
    resets = torch.zeros(2, 65, dtype=torch.bool, device=device)
    resets[1, starts] = True
    check(inputs(device, torch.float32, 2, 65, 9, 4), resets)


def test_strides(device):
    check(inputs(device, torch.float32, 2, 12, 10, 4), view=every_other)


def test_a_second_gradient_is_refused_and_not_zero(device):
    x, weight, bias, before = (t.requires_grad_() for t in inputs(device, torch.float32, 1, 4, 3, 2))
    with backend("triton"):
        y = causal_convolution(x, weight, bias, before).square().sum()
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(y, x, create_graph=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_real_sizes_on_a_gpu(dtype):
    check(inputs("cuda", dtype, 4, 4096, 1536, 4))


def test_compiled_for_hopper_without_spills():
    shape = {"seq": "i32:16", "channels": "i32:16"}
    pointers = {name: "*bf16:16" for name in ("x", "before", "weight")} | shape
    tile = {"KERNEL": 4, "TOKENS": 32, "CHANNELS": 64}
    forward, backward = {"bias": "*bf16:16", "y": "*bf16:16"}, {name: "*bf16:16" for name in ("dy", "dx", "dbefore")}
    documents = {"documents": "*i32:16"}
    made = compile_ahead(
        [
            Kernel("convolution", "_forward", pointers | forward | documents, tile),
            Kernel("convolution", "_forward", pointers | forward, tile | {"documents": None}),
            Kernel("convolution", "_backward", pointers | backward | documents | {"parts": "*fp32:16"}, tile),
        ]
    )
    for kernel in made:
        assert kernel.spilled_bytes == 0 and kernel.registers <= 128, made
