"""Rotary embedding in Triton against the reference in float64."""

import pytest
import torch

from groundup.kernels import apply_rope, backend, rope_frequencies, rope_tables, rotate
from tests.kernels.triton.ahead import Kernel, compile_ahead
from tests.kernels.triton.holding import TOLERANCE, hold

pytest.importorskip("triton")


def arguments(batch, seq, heads, d_head, dtype, device, rows=None):
    x = torch.randn(batch, seq, heads, d_head, device=device).to(dtype).requires_grad_()
    positions = torch.randint(0, 999, (rows or batch, seq), device=device)
    return x, *rope_tables(positions, rope_frequencies(d_head, device=x.device))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 3, 3, 14), (1, 2, 7, 82), (2, 0, 2, 8), (1, 1, 41, 64)])
def test_against_the_reference(device, shape, dtype):
    hold(rotate, *arguments(*shape, dtype, device))


def test_one_row_of_tables_serves_the_batch(device):
    hold(rotate, *arguments(2, 3, 2, 8, torch.float32, device, rows=1))


def test_the_first_channels_of_a_head_are_turned_where_they_lie(device):
    _, cos, sin = arguments(2, 3, 2, 8, torch.float32, device)
    wide = torch.randn(2, 3, 2, 20, device=device, requires_grad=True)
    with backend("triton"):
        y = rotate(wide[..., :8], cos, sin)
    torch.testing.assert_close(y, rotate.reference(wide[..., :8], cos, sin))
    turned = torch.randn(2, 2, 3, 8, device=device).transpose(1, 2)
    with backend("triton"):
        torch.testing.assert_close(rotate(turned, cos, sin), rotate.reference(turned, cos, sin))


def test_the_gradient_is_the_inverse_rotation(device):
    x, cos, sin = arguments(1, 3, 2, 8, torch.float32, device)
    with backend("triton"):
        y = rotate(x, cos, sin)
        torch.testing.assert_close(torch.autograd.grad(y, x, y.detach())[0], x)
        far = torch.tensor([[257, 100_003, 5]], device=device)
        y = apply_rope(x, far)
    torch.testing.assert_close(y, apply_rope(x.double(), far).float(), rtol=1e-5, atol=1e-5)


def test_what_is_refused():
    x, table = torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 4)
    with backend("triton"):
        with pytest.raises(ValueError, match="torch.bfloat16"):
            rotate(x, table.bfloat16(), table.bfloat16())
        with pytest.raises(ValueError, match="need a gradient"):
            rotate(x, table.clone().requires_grad_(), table)


@pytest.mark.gpu
def test_real_sizes_on_a_gpu():
    for dtype in (torch.bfloat16, torch.float32):
        for heads, d_head in ((32, 128), (9, 64), (1, 64)):
            hold(rotate, *arguments(2, 1024, heads, d_head, dtype, torch.device("cuda")))


def test_compiled_for_hopper_without_spills():
    signature = {"x": "*bf16:16", "cos": "*fp32:16", "sin": "*fp32:16", "y": "*bf16:16", "seq": "i32:16"}
    signature |= {n: "i32:16" for n in ("heads", "pairs", "x_batch", "x_seq", "x_head", "table_batch")}
    made = compile_ahead(
        [
            Kernel("rope", "_rotate", signature, {"BACKWARDS": back, "HEADS": heads, "PAIRS": pairs}, warps=2)
            for back in (False, True)
            for heads, pairs in ((16, 64), (32, 32))
        ]
    )
    assert all(kernel.spilled_bytes == 0 and kernel.registers <= 168 for kernel in made), made
