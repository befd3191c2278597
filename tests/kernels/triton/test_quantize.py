"""Eight-bit numbers in Triton: byte for byte those of the reference, interpreted here, compiled where a GPU is."""

import math

import pytest
import torch

from groundup.kernels import backend
from groundup.kernels.quantize import E4M3, E5M2, LARGEST, quantize_blocks, quantize_rows, quantize_tensor
from tests.kernels.triton.ahead import Kernel, compile_ahead

pytest.importorskip("triton")
SHAPES = [(1, 1), (3, 7), (2, 3, 41), (2, 129), (5, 32), (0, 8), (2, 8193)]
CASES = [
    (quantize_tensor, E4M3), (quantize_tensor, E5M2), (quantize_tensor, torch.int8),
    (quantize_rows, E4M3), (quantize_rows, E5M2), (quantize_rows, torch.int8),
    (quantize_blocks, E4M3), (quantize_blocks, E5M2),
]  # fmt: skip


def same(got, expected):
    """As numbers, and where they are not numbers, at the same places. An integer has no NaN: its scale tells."""
    assert got.values.dtype == expected.values.dtype and got.scales.dtype == expected.scales.dtype
    torch.testing.assert_close(got.scales.float(), expected.scales.float(), rtol=0, atol=0, equal_nan=True)
    mine, theirs = (q.values.float() for q in (got, expected))
    if got.values.dtype == torch.int8:
        known = torch.isfinite(expected.scales).expand(mine.shape)
        mine, theirs = mine[known], theirs[known]
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


def check(op, dtype, x):
    with backend("triton"):
        got = op(x, dtype)
    same(got, op.reference(x, dtype))


@pytest.mark.parametrize(("op", "dtype"), CASES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_against_the_reference(device, op, dtype, shape, kept):
    x = torch.randn(shape, device=device) * 2.0 ** torch.randint(-12, 12, shape, device=device)
    check(op, dtype, x.to(kept))


@pytest.mark.parametrize(("op", "dtype"), CASES)
def test_zeros_strides_and_what_is_not_finite(device, op, dtype):
    check(op, dtype, torch.zeros(3, 40, device=device))
    check(op, dtype, torch.full((2, 40), 1e-38, device=device))
    check(op, dtype, torch.randn(40, 6, device=device).T[::2])
    for odd in (math.nan, math.inf, -math.inf):
        x = torch.randn(3, 70, device=device)
        x[1, 65] = odd
        check(op, dtype, x)


@pytest.mark.parametrize("dtype", [E4M3, E5M2, torch.int8])
def test_every_number_and_every_middle_between_two(device, dtype):
    """Ties go to the even one: with the largest number in front the scale is 1 and nothing else is rounded."""
    if dtype == torch.int8:
        numbers = torch.arange(-127.0, 128.0)
    else:
        numbers = torch.arange(256, dtype=torch.uint8).view(dtype).float()
        numbers = numbers[torch.isfinite(numbers)].sort().values
    middles = (numbers[1:] + numbers[:-1]) / 2
    near = torch.cat([middles.nextafter(middles + 1), middles.nextafter(middles - 1)])
    x = torch.cat([torch.tensor([LARGEST[dtype]]), numbers, middles, near]).to(device)
    check(quantize_tensor, dtype, x)
    check(quantize_rows, dtype, x[None])


def test_what_wants_a_gradient_is_left_to_the_reference(device):
    x = torch.randn(4, 4, device=device, requires_grad=True)
    with backend("triton"), pytest.raises(ValueError, match="no backward"):
        quantize_rows(x)
    with backend("triton"), torch.no_grad():
        same(quantize_rows(x), quantize_rows.reference(x))


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "dtype"), CASES)
def test_real_sizes_on_a_gpu(op, dtype):
    check(op, dtype, torch.randn(4096, 11_008, device="cuda", dtype=torch.bfloat16))


def test_compiled_for_two_generations_without_spills():
    """One without float8 (an A100) and one with."""
    pointers = {"x": "*bf16:16", "values": "*u8:16"}
    rounding = [{"FORMAT": "e4m3", "LARGEST": 448.0}, {"FORMAT": "int8", "LARGEST": 127.0}]
    kernels = [
        Kernel("quantize", "_largest", {"x": "*bf16:16", "largest": "*fp32", "count": "i32:16"}, {"BLOCK": 4096})
    ]
    for form in rounding:
        scale = {"scale": "*fp32", "count": "i32:16"}
        kernels.append(Kernel("quantize", "_divide", pointers | scale, form | {"BLOCK": 4096}, warps=8))
        scales = {"scales": "*fp32:16", "n": "i32:16"}
        kernels.append(Kernel("quantize", "_rows", pointers | scales, form | {"BLOCK": 8192}, warps=16))
    shape = {"scales": "*u8:16", "n": "i32:16", "per_row": "i32", "count": "i32"}
    constants = rounding[0] | {"EMAX": 8, "BLOCK": 4096}
    kernels.append(Kernel("quantize", "_blocks", pointers | shape, constants, warps=8))
    for architecture in (80, 90):
        for kernel in compile_ahead(kernels, architecture):
            assert kernel.spilled_bytes == 0 and kernel.registers <= 64, kernel
