"""float8 with scales: every number against formats written out by hand, bounds on the error, and the edges."""

import math

import pytest
import torch

from groundup.kernels.quantize import (
    E4M3,
    E5M2,
    LARGEST,
    MX_BLOCK,
    dequantize,
    quantize_blocks,
    quantize_rows,
    quantize_tensor,
    saturate,
)

# (bits of fraction, smallest normal exponent, largest number), from arXiv:2209.05433, table 1.
FORMATS = {E4M3: (3, -6, 448.0), E5M2: (2, -14, 57_344.0)}
QUANTIZERS = {"tensor": quantize_tensor, "rows": quantize_rows, "blocks": quantize_blocks}


def rounded(x: float, dtype: torch.dtype) -> float:
    """The nearest number of the format, ties to even, by arithmetic in double precision."""
    bits, least, largest = FORMATS[dtype]
    if math.isnan(x) or x == 0:
        return x
    exponent = max(math.frexp(x)[1] - 1, least)
    unit = 2.0 ** (exponent - bits)
    return math.copysign(min(round(abs(x) / unit) * unit, largest), x)


@pytest.mark.parametrize("dtype", FORMATS)
def test_saturate_is_the_format_by_hand(dtype):
    torch.manual_seed(0)
    x = torch.cat([torch.randn(500) * 2.0 ** torch.randint(-20, 18, (500,)), torch.tensor([LARGEST[dtype], 1e9, -1e9])])
    expected = torch.tensor([rounded(v, dtype) for v in x.tolist()])
    assert torch.equal(saturate(x, dtype).float(), expected)
    odd = saturate(torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0]), dtype).float()
    assert odd[:2].tolist() == [LARGEST[dtype], -LARGEST[dtype]] and odd[2].isnan() and (odd[3:] == 0).all()


def test_one_scale_by_hand():
    """The largest becomes 448; 1 / 3 of it is 149.33, between 144 and 160."""
    values, scales = quantize_tensor(torch.tensor([[6.0, -2.0], [0.0, 3.0]]))
    assert values.dtype == E4M3 and float(scales) == pytest.approx(6 / 448)
    assert values.float().tolist() == [[448.0, -144.0], [0.0, 224.0]]
    rows = quantize_rows(torch.tensor([[6.0, -2.0], [0.0, 3.0]]))
    assert rows.values.float().tolist() == [[448.0, -144.0], [0.0, 448.0]] and rows.scales.shape == (2, 1)


def test_blocks_by_hand():
    """Microscaling, algorithm 1: 5 = 1.25 x 2^2, so the scale is 2^(2 - 8), and 5 becomes 320."""
    x = torch.zeros(1, 40)
    x[0, 0], x[0, 1], x[0, 33] = 5.0, 0.3, 1000.0  # 1000 = 1.95 x 2^9: 500 in units of 2^(9 - 8), saturated
    values, scales = quantize_blocks(x)
    assert scales.dtype == torch.float8_e8m0fnu and scales.float().tolist() == [[2.0**-6, 2.0]]
    assert values.shape == x.shape and values[0, 0].float() == 320 and values[0, 33].float() == 448
    assert values[0, 1].float() == rounded(0.3 * 64, E4M3) == 20.0
    assert dequantize(quantize_blocks(x))[0, 33] == 896.0


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("shape", [(1,), (7,), (5, 31), (3, 32), (2, 3, 33), (4, 129)])
def test_errors_are_within_half_a_unit(name, dtype, shape):
    """|x - Q(x)| <= half of the last bit of x, or of the scale's smallest number; more only where blocks saturate."""
    torch.manual_seed(1)
    x = torch.randn(shape) * 10.0 ** torch.empty(shape).uniform_(-6, 3)
    quantized = QUANTIZERS[name](x, dtype)
    back = dequantize(quantized)
    scales = quantized.scales.float()
    if name == "blocks":
        assert scales.shape == (*shape[:-1], -(-shape[-1] // MX_BLOCK))
        scales = scales.repeat_interleave(MX_BLOCK, -1)[..., : shape[-1]]
    bits, least, largest = FORMATS[dtype]
    unit = 2.0 ** (least - bits) * scales
    bound = torch.maximum(x.abs() * 2.0 ** -(bits + 1), unit / 2)
    saturated = x.abs() > largest * scales * (1 + 1e-6)
    assert name == "blocks" or not saturated.any()
    error = (x - back).abs()
    assert (error <= bound * (1 + 1e-5))[~saturated].all()
    assert (error[saturated] <= x.abs()[saturated] / 8).all()
    assert torch.equal(back.sign(), x.sign() * (back != 0))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_what_comes_out_is_kept_when_it_goes_in_again(name):
    x = torch.randn(6, 70)
    once = dequantize(QUANTIZERS[name](x))
    torch.testing.assert_close(dequantize(QUANTIZERS[name](once)), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("shape", [(0,), (0, 40), (3, 0)])
def test_empty_and_zero(name, shape):
    assert dequantize(QUANTIZERS[name](torch.zeros(shape))).shape == shape
    zeros = dequantize(QUANTIZERS[name](torch.zeros(3, 40)))
    assert torch.equal(zeros, torch.zeros(3, 40))
    # Numbers that only a subnormal scale would fit, and the largest that float32 has.
    assert not dequantize(QUANTIZERS[name](torch.full((2, 40), 1e-42))).isnan().any()
    huge = torch.full((2, 40), torch.finfo(torch.float32).max)
    assert torch.isfinite(dequantize(QUANTIZERS[name](huge))).all()


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_does_not_become_finite(name, bad):
    """Or the guard would never see it. How far it reaches is how far its scale does."""
    x = torch.ones(3, 64)
    x[1, 5] = bad
    back = dequantize(QUANTIZERS[name](x))
    assert not torch.isfinite(back[1, 5])
    touched = {"tensor": back, "rows": back[1], "blocks": back[1, :32]}[name]
    assert not torch.isfinite(touched).any()
    assert name == "tensor" or torch.equal(back[[0, 2]], torch.ones(2, 64))


def test_rows_and_blocks_do_not_see_each_other():
    x, y = torch.randn(4, 64), torch.randn(4, 64) * 1e4
    mixed = torch.cat([x, y])
    for quantizer in (quantize_rows, quantize_blocks):
        assert torch.equal(dequantize(quantizer(mixed))[:4], dequantize(quantizer(x)))
    assert not torch.equal(dequantize(quantize_tensor(mixed))[:4], dequantize(quantize_tensor(x)))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_strides_and_types_do_not_matter(name):
    x = torch.randn(40, 9).bfloat16()
    quantizer = QUANTIZERS[name]
    assert torch.equal(dequantize(quantizer(x.T)), dequantize(quantizer(x.T.contiguous().float())))
