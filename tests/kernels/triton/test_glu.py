"""The gated product in Triton against the reference in float64, for every activation."""

import pytest
import torch

from groundup.kernels import ACTIVATIONS, backend, gated
from tests.kernels.triton.ahead import Kernel, compile_ahead
from tests.kernels.triton.holding import TOLERANCE, hold

pytest.importorskip("triton")


def pair(*shape, dtype=torch.float32, device=None):
    return [(2 * torch.randn(shape, device=device)).to(dtype).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_against_the_reference(device, activation, dtype):
    for shape in ((1,), (3, 7), (2, 5, 129), (0, 5)):
        hold(gated, *pair(*shape, dtype=dtype, device=device), activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_far_from_zero(device, activation):
    """Where an exponential overflows, and where the slope of a rectifier jumps."""
    gate = torch.tensor([-200.0, -30.0, -1e-3, 0.0, 1e-3, 30.0, 200.0], device=device).requires_grad_()
    hold(gated, gate, torch.ones_like(gate).requires_grad_(), activation)


def test_gaps_and_nan(device):
    gate, up = torch.randn(2, 6, 8, device=device)
    nan = torch.tensor([float("nan")], device=device)
    with backend("triton"):
        torch.testing.assert_close(gated(gate.T[::2], up.T[::2]), gated.reference(gate.T[::2], up.T[::2]))
        assert all(gated(nan, torch.ones_like(nan), name).isnan() for name in ACTIVATIONS)


def test_what_is_refused():
    x = torch.zeros(2, 3)
    with backend("triton"):
        with pytest.raises(ValueError, match="the gate is torch.float32"):
            gated(x, x.bfloat16())
        with pytest.raises(ValueError, match="float64"):
            gated(x.double(), x.double())


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_real_sizes_on_a_gpu(activation):
    for dtype in (torch.bfloat16, torch.float32):
        hold(gated, *pair(1000, 11008, dtype=dtype, device="cuda"), activation)


def test_compiled_for_hopper_without_spills():
    """And not by more than the three 128-bit loads or stores of 8 numbers need."""
    forward = {"gate": "*bf16:16", "up": "*bf16:16", "y": "*bf16:16", "count": "i32:16"}
    backward = {n: "*bf16:16" for n in ("gate", "up", "dy", "dgate", "dup")} | {"count": "i32:16"}
    made = compile_ahead(
        [
            Kernel("glu", name, signature, {"ACTIVATION": activation, "BLOCK": 1024})
            for activation in ("silu", "gelu", "gelu_tanh")
            for name, signature in (("_forward", forward), ("_backward", backward))
        ]
    )
    assert all(kernel.spilled_bytes == 0 and kernel.registers <= 64 for kernel in made), made
