"""Numbers of eight bits and a scale: float8 or int8 with one per tensor or per row, or float8 in blocks of 32 (MX).

Scales are chosen from the numbers at hand ("dynamic"), so that the largest one just fits. Nothing overflows to
infinity: what is too large saturates. What was not finite before does not come out finite: its scale is NaN or
infinite, and so is what it multiplies.

int8 has the same step everywhere, a 127th of the largest number; float8's grows with the number.

The formats: Micikevicius et al. 2022 (arXiv:2209.05433), e4m3 for values, e5m2 for gradients; blocks with power-of-two
scales: Rouhani et al. 2023, "Microscaling data formats" (arXiv:2310.10537).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from groundup.kernels._dispatch import op

E4M3, E5M2, E8M0 = torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu
LARGEST = {E4M3: 448.0, E5M2: 57_344.0, torch.int8: 127.0}
LARGEST_EXPONENT = {E4M3: 8, E5M2: 15}
"""Of a normal number: 448 = 1.75 x 2^8. Microscaling, table 1, calls it emax_elem."""
MX_BLOCK = 32
# Scales of numbers that are all smaller would be subnormal, and their reciprocals infinite.
SMALLEST_AMAX = 2.0**-100


class Quantized(NamedTuple):
    """What stands for x: values * scales. `scales` multiply (a number, or one for each row) and are float32."""

    values: Tensor
    scales: Tensor


class Microscaled(NamedTuple):
    """Blocks of the last axis: `values` has x's shape, `scales` (..., ceil(last / 32)) is of type e8m0."""

    values: Tensor
    scales: Tensor


@op
def quantize_tensor(x: Float[Tensor, "*shape"], dtype: torch.dtype = E4M3) -> Quantized:
    """One scale for all: s = max |x| / largest number of `dtype`, values = round(x / s)."""
    amax = x.detach().abs().amax() if x.numel() else x.new_zeros(())
    return _quantize(x, amax, dtype)


@op
def quantize_rows(x: Float[Tensor, "*rows d"], dtype: torch.dtype = E4M3) -> Quantized:
    """One scale for each row (of the last axis): a large one does not take the resolution of the others.

    A row's values do not depend on other rows, so a causal model stays causal to the bit.
    """
    amax = x.detach().abs().amax(-1, keepdim=True) if x.numel() else x.new_zeros((*x.shape[:-1], 1))
    return _quantize(x, amax, dtype)


def _quantize(x: Tensor, amax: Tensor, dtype: torch.dtype) -> Quantized:
    # Times the reciprocal, as divided by a number GPUs and CPUs of torch round differently.
    scales = _or_one(amax.float()) * (1 / LARGEST[dtype])
    return Quantized(saturate(x.float() / scales, dtype), scales)


def _or_one(amax: Tensor) -> Tensor:
    """Zeros, and what is as good as zero, may have any scale. A NaN stays, as comparisons with it are false."""
    return torch.where(amax < SMALLEST_AMAX, 1.0, amax)


def saturate(x: Float[Tensor, "*shape"], dtype: torch.dtype) -> Tensor:
    """Rounded to the nearest number of `dtype`, ties to even; beyond the largest one it is that one. NaN stays NaN.

    torch's own cast makes e5m2 infinite there, and e4m3 NaN on some devices. It makes whole numbers by cutting off, and
    any of NaN.
    """
    whole = x if dtype.is_floating_point else x.round()
    return whole.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)


@op
def quantize_blocks(x: Float[Tensor, "*rows d"], dtype: torch.dtype = E4M3) -> Microscaled:
    r"""A power of two for each block of 32 along the last axis; the last block may be shorter.

        scale = 2^(floor(log2(max |x|)) - emax),   values = round(x / scale), saturated

    Microscaling, algorithm 1, with emax = 8 for e4m3. As the exponent is rounded down, a largest number of 449 to 511
    times the scale saturates: the worst error of a block is 1/8 of its largest number. An e8m0 scale has eight bits of
    exponent and nothing else, 2^-127 to 2^127, and one pattern for NaN.
    """
    blocks = _blocks(x)
    amax = _or_one(blocks.detach().abs().amax(-1, keepdim=True).float())
    # frexp gives m in [1/2, 1), so its exponent is one more than the floor of the logarithm, and exact.
    exponent = torch.frexp(amax).exponent - 1 - LARGEST_EXPONENT[dtype]
    scales = torch.ldexp(torch.ones_like(amax), exponent)
    scales = torch.where(torch.isfinite(amax), scales, torch.nan)
    values = saturate(blocks.float() / scales, dtype).flatten(-2)[..., : x.shape[-1]]
    return Microscaled(values, scales[..., 0].to(E8M0))


def _blocks(x: Tensor) -> Tensor:
    """(..., blocks, 32), the last one filled up with zeros, which change no maximum."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % MX_BLOCK)).unflatten(-1, (-1, MX_BLOCK))


def dequantize(quantized: Quantized | Microscaled) -> Float[Tensor, "*shape"]:
    """values * scales in float32."""
    values, scales = quantized.values.float(), quantized.scales.float()
    if isinstance(quantized, Quantized):
        return values * scales
    return (_blocks(values) * scales[..., None]).flatten(-2)[..., : values.shape[-1]]
