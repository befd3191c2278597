"""Eight-bit numbers and their scales: x is read from DRAM, and a byte for each element is written.

Plain torch writes |x|, the quotient and the clamped quotient to memory between the passes. Here a row, or 32 numbers,
stay in registers while their largest is found; only one scale for a whole tensor takes a second pass over x.

Rounding is written out in integer arithmetic, so the bytes are those of the reference on every GPU, also on those
whose compiler knows no float8.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from groundup.kernels.quantize import (
    E4M3,
    E8M0,
    LARGEST,
    LARGEST_EXPONENT,
    MX_BLOCK,
    SMALLEST_AMAX,
    Microscaled,
    Quantized,
)
from groundup.kernels.triton._support import refuses_device, row_block, row_warps, rows_of, tuned

BLOCKS = {"BLOCK": 4096, "warps": 8}
CANDIDATES = {
    "quantize_tensor": [{"BLOCK": n, "warps": w} for n, w in ((1024, 4), (2048, 4), (4096, 8), (8192, 8))],
    "quantize_rows": [{"warps": n} for n in (1, 2, 4, 8, 16)],
    "quantize_blocks": [{"BLOCK": n, "warps": w} for n, w in ((1024, 4), (2048, 4), (4096, 8), (4096, 16))],
}
_SMALLEST, _MX_BLOCK = tl.constexpr(SMALLEST_AMAX), tl.constexpr(MX_BLOCK)


def refuses(x: Tensor, dtype: torch.dtype = E4M3) -> str | None:
    if torch.is_grad_enabled() and x.requires_grad:
        return "these kernels have no backward pass, and the input wants a gradient"
    return refuses_device(x)


def quantize_tensor(x: Tensor, dtype: torch.dtype = E4M3) -> Quantized:
    flat, values = x.contiguous().view(-1), torch.empty(x.shape, dtype=dtype, device=x.device)
    blocks = tuned("quantize_tensor", (x.dtype,), BLOCKS)
    programs = triton.cdiv(flat.numel(), blocks["BLOCK"])
    if not programs:
        return Quantized(values, torch.full((), 1 / LARGEST[dtype], device=x.device))
    shape = {"BLOCK": blocks["BLOCK"], "num_warps": blocks["warps"]}
    largest = torch.empty(programs, dtype=torch.float32, device=x.device)
    _largest[(programs,)](flat, largest, flat.numel(), **shape)
    scale = _scale_of(largest.amax(), dtype)
    _divide[(programs,)](flat, scale, _bytes(values), flat.numel(), **_format(dtype), **shape)
    return Quantized(values, scale)


def quantize_rows(x: Tensor, dtype: torch.dtype = E4M3) -> Quantized:
    rows, values = rows_of(x), torch.empty(x.shape, dtype=dtype, device=x.device)
    scales = torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device)
    if not x.numel():
        return Quantized(values, scales.fill_(1 / LARGEST[dtype]))
    n, block = rows.shape[1], row_block(rows.shape[1])
    warps = tuned("quantize_rows", (x.dtype, n), {"warps": row_warps(block)})["warps"]
    _rows[(len(rows),)](rows, _bytes(values), scales, n, **_format(dtype), BLOCK=block, num_warps=warps)
    return Quantized(values, scales)


def quantize_blocks(x: Tensor, dtype: torch.dtype = E4M3) -> Microscaled:
    rows, values = rows_of(x), torch.empty(x.shape, dtype=dtype, device=x.device)
    n, per_row = rows.shape[1], triton.cdiv(rows.shape[1], MX_BLOCK)
    scales = torch.empty(*x.shape[:-1], per_row, dtype=torch.uint8, device=x.device)
    if x.numel():
        blocks = tuned("quantize_blocks", (x.dtype,), BLOCKS)
        grid = (triton.cdiv(len(rows) * per_row, blocks["BLOCK"] // MX_BLOCK),)
        _blocks[grid](
            rows, _bytes(values), scales, n, per_row, len(rows) * per_row, EMAX=LARGEST_EXPONENT[dtype],
            **_format(dtype), BLOCK=blocks["BLOCK"], num_warps=blocks["warps"],
        )  # fmt: skip
    return Microscaled(values, scales.view(E8M0))


def traffic(elements: int, element_bytes: int, *, passes: int = 1) -> int:
    """Bytes from and to DRAM, scales left out; `quantize_tensor` makes two passes over what it reads."""
    return elements * (passes * element_bytes + 1)


def _bytes(values: Tensor) -> Tensor:
    return values.view(torch.uint8)


def _format(dtype: torch.dtype) -> dict[str, Any]:
    return {"FORMAT": {torch.int8: "int8", torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}[dtype]} | {
        "LARGEST": LARGEST[dtype]
    }


def _scale_of(amax: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(amax < SMALLEST_AMAX, 1.0, amax) * (1 / LARGEST[dtype])


@triton.jit
def _amax(x):
    """The largest |x| of all; NaN if there is one, which a maximum of floats would pass over."""
    return tl.where(tl.max((x != x).to(tl.int32), 0) > 0, float("nan"), tl.max(tl.abs(x), 0))


@triton.jit
def _rounded(x, FORMAT: tl.constexpr, LARGEST: tl.constexpr):
    """The byte of the number nearest to x, ties to even, beyond the largest one that one."""
    x = tl.where(x > LARGEST, LARGEST, tl.where(x < -LARGEST, -LARGEST, x))  # NaN stays
    if FORMAT == "int8":
        # With 1.5 * 2^23 added, a float has no bits left for a fraction: the sum is rounded, its last bits are x.
        return (x + 12582912.0).to(tl.int32, bitcast=True).to(tl.uint8)
    elif FORMAT == "e4m3":
        return _float8(x, 3, 7)
    else:
        return _float8(x, 2, 15)


@triton.jit
def _float8(x, MANTISSA: tl.constexpr, BIAS: tl.constexpr):
    bits = x.to(tl.uint32, bitcast=True)
    sign, magnitude = (bits >> 24) & 0x80, bits & 0x7FFFFFFF
    dropped: tl.constexpr = 23 - MANTISSA
    # To the nearest, ties to the even one: add just under half, and one more where what is kept is odd. A carry runs
    # on into the exponent, as it should. Then float32's exponent, which counts from -127, counts from -BIAS.
    odd = (magnitude >> dropped) & 1
    normal = ((magnitude + ((1 << (dropped - 1)) - 1) + odd) >> dropped) - ((127 - BIAS) << MANTISSA)
    # Subnormal numbers have steps of 2^(1 - BIAS - MANTISSA), which are the last bit of a float32 of this size.
    size: tl.constexpr = 2.0 ** (24 - BIAS - MANTISSA)
    near_zero = (tl.abs(x) + size).to(tl.uint32, bitcast=True) & 0xFF
    found = tl.where(tl.abs(x) < 2.0 ** (1 - BIAS), near_zero, normal)
    return (sign | tl.where(x != x, 0x7F, found)).to(tl.uint8)


@triton.jit
def _largest(x, largest, count, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(largest + tl.program_id(0), _amax(tl.load(x + places, mask=places < count, other=0.0).to(tl.float32)))


@triton.jit
def _divide(x, scale, values, count, FORMAT: tl.constexpr, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    quotient = tl.div_rn(tl.load(x + places, mask=inside, other=0.0).to(tl.float32), tl.load(scale))
    tl.store(values + places, _rounded(quotient, FORMAT, LARGEST), mask=inside)


@triton.jit
def _rows(x, values, scales, n, FORMAT: tl.constexpr, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    start = row.to(tl.int64) * n
    columns = tl.arange(0, BLOCK)
    amax = tl.full((), 0.0, tl.float32)
    for begin in range(0, n, BLOCK):
        tile = tl.load(x + start + begin + columns, mask=begin + columns < n, other=0.0).to(tl.float32)
        here = _amax(tile)
        amax = tl.where((here != here) | (here > amax), here, amax)
    scale = tl.where(amax < _SMALLEST, 1.0, amax) * (1 / LARGEST)
    tl.store(scales + row, scale)
    for begin in range(0, n, BLOCK):
        inside = begin + columns < n
        tile = tl.load(x + start + begin + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(values + start + begin + columns, _rounded(tl.div_rn(tile, scale), FORMAT, LARGEST), mask=inside)


@triton.jit
def _blocks(
    x, values, scales, n, per_row, count, EMAX: tl.constexpr,
    FORMAT: tl.constexpr, LARGEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each line of the tile is 32 numbers that share a power of two; a row's last line may be shorter."""
    line = tl.program_id(0).to(tl.int64) * (BLOCK // _MX_BLOCK) + tl.arange(0, BLOCK // _MX_BLOCK)
    column = (line % per_row)[:, None] * _MX_BLOCK + tl.arange(0, _MX_BLOCK)[None]
    places = (line // per_row)[:, None] * n + column
    inside = (line < count)[:, None] & (column < n)
    tile = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    amax = tl.max(tl.abs(tile), 1)
    amax = tl.where(tl.max((tile != tile).to(tl.int32), 1) > 0, float("nan"), tl.where(amax < _SMALLEST, 1.0, amax))
    # The exponent's bits say floor(log2(amax)) + 127: an e8m0 scale is that, less EMAX. 255 stands for NaN.
    exponent = ((amax.to(tl.uint32, bitcast=True) >> 23) & 0xFF).to(tl.int32)
    finite = exponent < 255
    scale = tl.where(finite, ((exponent - EMAX) << 23).to(tl.float32, bitcast=True), float("nan"))
    tl.store(scales + line, tl.where(finite, exponent - EMAX, 255).to(tl.uint8), mask=line < count)
    tl.store(
        values + places,
        _rounded(tl.div_rn(tile, tl.broadcast_to(scale[:, None], tile.shape)), FORMAT, LARGEST),
        mask=inside,
    )
