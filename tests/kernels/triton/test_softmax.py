"""Softmax in Triton against the reference: interpreted here, compiled where a GPU is."""

import pytest
import torch

from groundup.kernels import backend, log_softmax, softmax
from tests.kernels.triton.ahead import Kernel, compile_ahead
from tests.kernels.triton.bfloat16 import to_bfloat16, to_float32

pytest.importorskip("triton")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SHAPES = [(1, 1), (3, 7), (2, 3, 41), (2, 129), (0, 8), (2, 8193)]


def with_gradient(function, x, upstream):
    x = x.detach().clone().requires_grad_()
    y = function(x)
    y.backward(upstream.to(y.dtype))
    return y.detach(), x.grad


@pytest.mark.parametrize("function", [softmax, log_softmax])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_against_the_reference(device, function, shape, dtype):
    x, upstream = (5 * torch.randn(2, *shape, device=device)).to(dtype)
    with backend("triton"):
        got = with_gradient(function, x, upstream)
    exact = with_gradient(function.reference, x.double(), upstream.double())
    for a, b in zip(got, exact, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=TOLERANCE[dtype], atol=5 * TOLERANCE[dtype])


def test_strides_and_huge_logits(device):
    x = torch.randn(6, 5, device=device).T[:, ::2]
    with backend("triton"):
        torch.testing.assert_close(softmax(x), softmax.reference(x))
        huge = torch.tensor([1e4, 1e4 - 1, -1e4], device=device)
        torch.testing.assert_close(log_softmax(huge), log_softmax.reference(huge))


def test_float64_is_refused_with_the_reason():
    with backend("triton"), pytest.raises(ValueError, match="float64"):
        softmax(torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n", [50_257, 4096])
def test_real_sizes_on_a_gpu(dtype, n):
    test_against_the_reference(torch.device("cuda"), softmax, (512, n), dtype)
    test_against_the_reference(torch.device("cuda"), log_softmax, (512, n), dtype)


def test_compiled_for_hopper_without_spills():
    pointers = {"x": "*bf16:16", "y": "*bf16:16", "kept": "*fp32:16", "n": "i32:16"}
    back = {"x": "*bf16:16", "dy": "*bf16:16", "dx": "*bf16:16", "kept": "*fp32:16", "n": "i32:16"}
    made = compile_ahead(
        [
            Kernel("softmax", name, signature, {"LOGARITHM": logarithm, "BLOCK": 8192}, warps=16)
            for name, signature in (("_forward", pointers), ("_backward", back))
            for logarithm in (False, True)
        ]
    )
    for kernel in made:
        assert kernel.spilled_bytes == 0 and kernel.registers <= 64, made


def test_rounding_of_the_repaired_interpreter_is_torch_s():
    values = torch.cat([torch.randn(1000), torch.tensor([0.0, -0.0, float("inf"), 1 + 2**-8, 1 + 3 * 2**-8])])
    expected = values.bfloat16()
    assert torch.equal(torch.from_numpy(to_float32(to_bfloat16(values.numpy()))), expected.float())
