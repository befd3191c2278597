"""RMSNorm and LayerNorm in Triton, alone and with a residual, against the reference in float64."""

import pytest
import torch

from groundup.kernels import add_layernorm, add_rmsnorm, backend, layernorm, rmsnorm
from tests.kernels.triton.ahead import Kernel, compile_ahead
from tests.kernels.triton.holding import TOLERANCE, hold

pytest.importorskip("triton")
OPS = {"rms": rmsnorm, "layer": layernorm, "add_rms": add_rmsnorm, "add_layer": add_layernorm}


def arguments(kind, shape, dtype, device, weight_dtype=None):
    def draw(*of, as_dtype=dtype):
        return torch.randn(of, device=device).to(as_dtype).requires_grad_()

    vectors = [draw(shape[-1], as_dtype=weight_dtype or dtype) for _ in range(2 if "layer" in kind else 1)]
    return [draw(*shape) for _ in range(2 if "add" in kind else 1)] + vectors


@pytest.mark.parametrize("kind", OPS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 41), (9, 129), (0, 8)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_against_the_reference(device, kind, shape, dtype):
    # 9 rows on few programs: each has several. Of one channel, gradients are 0 up to eps, and what is left is rounding.
    hold(OPS[kind], *arguments(kind, shape, dtype, device), tolerance=2e-2 if shape == (1, 1) else None)


def test_float32_weights_on_bfloat16_activations(device):
    for kind, op in OPS.items():
        args = arguments(kind, (5, 24), torch.bfloat16, device, torch.float32)
        with backend("triton"):
            result = op(*args)
        assert all(t.dtype == torch.bfloat16 for t in (result if isinstance(result, tuple) else (result,)))
        hold(op, *args, tolerance=1e-2)


def test_rows_with_gaps_a_large_mean_and_no_bias(device):
    x, weight = torch.randn(8, 6, device=device).T[:, ::2], torch.randn(4, device=device)
    with backend("triton"):
        torch.testing.assert_close(rmsnorm(x, weight), rmsnorm.reference(x, weight))
        far = torch.tensor([[10000.0, 10001.0, 10002.0, 10003.0]], device=device)
        expected = torch.tensor([[-3.0, -1.0, 1.0, 3.0]], device=device) / 5**0.5
        torch.testing.assert_close(layernorm(far, torch.ones(4, device=device), None, 0.0), expected)


def test_the_sum_alone_passes_its_gradient_on(device):
    x, residual = torch.randn(2, 3, 8, device=device, requires_grad=True)
    upstream = torch.randn(3, 8, device=device)
    with backend("triton"):
        total, _ = add_rmsnorm(x, residual, torch.ones(8, device=device))
    for gradient in torch.autograd.grad(total, (x, residual), upstream):
        torch.testing.assert_close(gradient, upstream)


def test_the_norm_is_that_of_the_rounded_sum(device):
    x, residual = (10 * torch.randn(2, 5, 24, device=device)).bfloat16()
    weight = torch.ones(24, device=device)
    with backend("triton"):
        total, y = add_rmsnorm(x, residual, weight)
        assert torch.equal(total, x + residual) and torch.equal(y, rmsnorm(total, weight))


def test_frozen_weights_get_no_gradient(device):
    x, weight = torch.randn(3, 8, device=device, requires_grad=True), torch.randn(8, device=device)
    with backend("triton"):
        rmsnorm(x, weight).sum().backward()
    expected = x.detach().clone().requires_grad_()
    rmsnorm.reference(expected, weight).sum().backward()
    torch.testing.assert_close(x.grad, expected.grad)


def test_what_is_refused():
    with backend("triton"):
        with pytest.raises(ValueError, match="float64"):
            rmsnorm(torch.zeros(2, 3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
        with pytest.raises(ValueError, match="20000 elements does not fit"):
            layernorm(torch.zeros(1, 20000), torch.ones(20000))
        with pytest.raises(ValueError, match="the residual torch.float32"):
            add_rmsnorm(torch.zeros(2, 3).bfloat16(), torch.zeros(2, 3), torch.ones(3))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", OPS)
def test_real_sizes_on_a_gpu(kind):
    for dtype, n in ((torch.bfloat16, 4096), (torch.float32, 2048), (torch.bfloat16, 16384)):
        args = arguments(kind, (1024, n), dtype, torch.device("cuda"), torch.float32)
        hold(OPS[kind], *args, tolerance=1e-2 if dtype == torch.bfloat16 else 2e-5)


@pytest.mark.gpu
def test_compiled_into_a_graph_on_a_gpu():
    x, weight = torch.randn(64, 1024, device="cuda"), torch.randn(1024, device="cuda")
    with backend("triton"):
        compiled = torch.compile(lambda x, w: rmsnorm(x * 2, w) + 1, fullgraph=True)
        torch.testing.assert_close(compiled(x, weight), rmsnorm.reference(x * 2, weight) + 1)


def norms(block, warps):
    flags = [(centred, added) for centred in (False, True) for added in (False, True)]
    data = {name: "*bf16:16" for name in ("x", "residual", "total", "dy", "d_total", "dx", "y")}
    data |= {name: "*fp32:16" for name in ("weight", "bias", "statistics", "weight_shares", "bias_shares")}
    data |= {"n": "i32:16", "rows": "i32", "eps": "fp32"}
    names = {
        "_forward": "x residual total weight bias y statistics n eps",
        "_backward": "x weight statistics dy d_total dx weight_shares bias_shares rows n",
    }
    for kernel, arguments_of in names.items():
        for centred, added in flags:
            own = {"BIASED": centred} if kernel == "_forward" else {"WEIGHT": True, "BIAS": centred}
            constants = {"CENTRED": centred, "ADDED": added, "BLOCK": block, **own}
            yield Kernel("norm", kernel, {n: data[n] for n in arguments_of.split()}, constants, warps=warps)


def test_compiled_for_hopper_without_spills():
    made = compile_ahead([*norms(4096, 8), *norms(8192, 16)])
    assert all(kernel.spilled_bytes == 0 and kernel.registers <= 128 for kernel in made), made
