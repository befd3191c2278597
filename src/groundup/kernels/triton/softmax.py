"""Softmax and its logarithm, a row per program: each element is read once from DRAM and written once.

In plain torch, maximum, difference, exponential, sum and quotient are five passes over memory. Here a program keeps
its row in registers between them. A row longer than a block goes through in tiles, twice: first for the maximum and
the sum, by the online recurrence of Milakov & Gimelshein 2018 (arXiv:1805.02867, algorithm 3), then for the result;
the second pass finds what it can in the L2 cache.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from groundup.kernels.triton._support import refuses_device, row_block, row_warps, rows_of


def refuses(x: Tensor) -> str | None:
    return refuses_device(x)


def softmax(x: Tensor) -> Tensor:
    return _Softmax.apply(x, False)


def log_softmax(x: Tensor) -> Tensor:
    return _Softmax.apply(x, True)


def traffic(rows: int, n: int, element_bytes: int, *, backward: bool = False) -> int:
    """Bytes from and to DRAM: x and y forward; x, dy and dx backward; and two float32 per row."""
    return rows * (n * element_bytes * (3 if backward else 2) + 8)


class _Softmax(torch.autograd.Function):
    """Keeps x and, of each row, the maximum and the logarithm of the sum, in float32.

    Kept instead, a rounded y would make the gradient of log_softmax wrong by as much as exp(y) changes with its last
    bit, which at y = -9 in bfloat16 is 3 %. The two apart, as a maximum of 10,000 swallows the digits of the other.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, logarithm: bool) -> Tensor:
        rows = rows_of(x)
        y, kept = torch.empty_like(rows), rows.new_empty(len(rows), 2, dtype=torch.float32)
        _launch(_forward, rows, y, kept, logarithm=logarithm)
        ctx.save_for_backward(rows, kept)
        ctx.logarithm = logarithm
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        rows, kept = ctx.saved_tensors
        dx = torch.empty_like(rows)
        _launch(_backward, rows, rows_of(upstream[0]), dx, kept, logarithm=ctx.logarithm)
        return dx.view(upstream[0].shape), None


def _launch(kernel: Any, first: Tensor, *others: Tensor, logarithm: bool) -> None:
    rows, n = first.shape
    if rows and n:
        block = row_block(n)
        kernel[(rows,)](first, *others, n, LOGARITHM=logarithm, BLOCK=block, num_warps=row_warps(block))


@triton.jit
def _forward(x, y, kept, n, LOGARITHM: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    start = row.to(tl.int64) * n
    columns = tl.arange(0, BLOCK)
    # The sum so far counts from the maximum so far: a larger one shrinks what was summed before.
    largest, total = tl.full((), float("-inf"), tl.float32), tl.full((), 0.0, tl.float32)
    for begin in range(0, n, BLOCK):
        inside = begin + columns < n
        tile = tl.load(x + start + begin + columns, mask=inside, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(largest, tl.max(tile, 0))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(tile - larger), 0)
        largest = larger
    tl.store(kept + 2 * row, largest)
    tl.store(kept + 2 * row + 1, tl.log(total))
    for begin in range(0, n, BLOCK):
        inside = begin + columns < n
        tile = tl.load(x + start + begin + columns, mask=inside, other=0.0).to(tl.float32) - largest
        tile = tile - tl.log(total) if LOGARITHM else tl.exp(tile) / total
        tl.store(y + start + begin + columns, tile.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(x, dy, dx, kept, n, LOGARITHM: tl.constexpr, BLOCK: tl.constexpr):
    """With p = softmax(x): dx = p (dy - sum(p dy)); of the logarithm, dx = dy - p sum(dy)."""
    row = tl.program_id(0)
    start = row.to(tl.int64) * n
    columns = tl.arange(0, BLOCK)
    largest, log_total = tl.load(kept + 2 * row), tl.load(kept + 2 * row + 1)
    total = tl.full((), 0.0, tl.float32)
    for begin in range(0, n, BLOCK):
        inside = begin + columns < n
        up = tl.load(dy + start + begin + columns, mask=inside, other=0.0).to(tl.float32)
        if not LOGARITHM:
            tile = tl.load(x + start + begin + columns, mask=inside, other=float("-inf")).to(tl.float32)
            up *= tl.exp(tile - largest - log_total)
        total += tl.sum(up, 0)
    for begin in range(0, n, BLOCK):
        inside = begin + columns < n
        tile = tl.load(x + start + begin + columns, mask=inside, other=float("-inf")).to(tl.float32)
        up = tl.load(dy + start + begin + columns, mask=inside, other=0.0).to(tl.float32)
        p = tl.exp(tile - largest - log_total)
        gradient = up - p * total if LOGARITHM else p * (up - total)
        tl.store(dx + start + begin + columns, gradient.to(dx.dtype.element_ty), mask=inside)
