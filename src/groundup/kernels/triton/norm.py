"""RMSNorm and LayerNorm, a row per program, and the same fused with the addition of a residual before it.

Forward, a program holds its row in registers: x is read once and y written once, 4 bytes per element in bfloat16, where
the squares, their mean, the quotient and the product with the gain would be passes of their own. Fused with the
residual addition, x, the residual, the sum and y move once each: 8 bytes instead of 10.

Backward, with n the normalised row, r what it was divided by, inverted, g = weight * dy, and means over the row:

    dx = r (g - n mean(g n))                  of RMSNorm, as d r / d x = -r^2 n / d
    dx = r (g - mean(g) - n mean(g n))        of LayerNorm, whose mean takes its part of the gradient, too
    dweight = sum over rows of dy n,          dbias = sum over rows of dy

The sums over rows are the trouble: rows are spread over all programs. So a program takes many rows, one after another,
keeps its share of both sums in registers and writes it once; the few shares are added up afterwards, always in the same
order. x and dy are read once and dx written once: 6 bytes per element in bfloat16.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from groundup.kernels.triton._support import multiprocessors, refuses_device, row_warps, rows_of, tuned

LONGEST_ROW = 16384
"""That a program can hold: 32 float32 numbers in each of 512 threads."""

WARPS_PER_PROCESSOR = 16
"""In the backward pass: enough loads under way to hide their latency, and few enough that registers suffice."""

CANDIDATES = {name: [{"warps": n} for n in (1, 2, 4, 8, 16)] for name in ("norm_forward", "norm_backward")}


def refuses_rmsnorm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> str | None:
    return _refuses(x, weight)


def refuses_layernorm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> str | None:
    return _refuses(x, weight, bias)


def refuses_add_rmsnorm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-5) -> str | None:
    return _refuses_sum(x, residual) or _refuses(x, residual, weight)


def refuses_add_layernorm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
) -> str | None:
    return _refuses_sum(x, residual) or _refuses(x, residual, weight, bias)


def _refuses(x: Tensor, *others: Tensor | None) -> str | None:
    if x.shape[-1] > LONGEST_ROW:
        return f"a row of {x.shape[-1]} elements does not fit into registers; up to {LONGEST_ROW} do"
    return refuses_device(x, *others)


def _refuses_sum(x: Tensor, residual: Tensor) -> str | None:
    if x.dtype != residual.dtype or x.shape != residual.shape:
        return f"x is {x.dtype} {tuple(x.shape)} and the residual {residual.dtype} {tuple(residual.shape)}"
    return None


def rmsnorm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return _Norm.apply(x, weight, None, eps, False)


def layernorm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    return _Norm.apply(x, weight, bias, eps, True)


def add_rmsnorm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    return _AddNorm.apply(x, residual, weight, None, eps, False)


def add_layernorm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    return _AddNorm.apply(x, residual, weight, bias, eps, True)


def traffic(rows: int, n: int, element_bytes: int, *, added: bool = False, backward: bool = False) -> int:
    """Bytes from and to DRAM: x and y, or x, dy and dx; a residual and a sum more (or the sum's gradient); statistics.

    Without the shares of dweight, which stay in the L2 cache.
    """
    passes = 3 + added if backward else 2 + 2 * added
    return rows * (passes * n * element_bytes + 8)


class _Norm(torch.autograd.Function):
    """Keeps x and, of each row, mean and 1 / standard deviation, in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, centred: bool) -> Tensor:
        rows = rows_of(x)
        y, statistics = _normalise(rows, None, weight, bias, eps, centred)
        ctx.save_for_backward(rows, weight, statistics)
        ctx.centred = centred
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        need_x, *need_sums = ctx.needs_input_grad[:3]
        dx, dweight, dbias = _gradients(ctx, upstream[0], None, need_sums)
        return dx if need_x else None, dweight, dbias, None, None


class _AddNorm(torch.autograd.Function):
    """As `_Norm` of the sum, which is an output too: its own gradient is added in the same pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float, centred: bool
    ) -> tuple[Tensor, Tensor]:
        total = torch.empty_like(x, memory_format=torch.contiguous_format)
        rows = rows_of(total)
        y, statistics = _normalise(rows_of(x), (rows_of(residual), rows), weight, bias, eps, centred)
        ctx.save_for_backward(rows, weight, statistics)
        ctx.centred = centred
        return total, y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        need_x, need_residual, *need_sums = ctx.needs_input_grad[:4]
        d_total, dy = upstream
        dx, dweight, dbias = _gradients(ctx, dy, d_total, need_sums)
        return dx if need_x else None, dx if need_residual else None, dweight, dbias, None, None


def _normalise(
    x: Tensor, added: tuple[Tensor, Tensor] | None, weight: Tensor, bias: Tensor | None, eps: float, centred: bool
) -> tuple[Tensor, Tensor]:
    """(y, statistics) of rows; `added` is the residual and where the sum goes."""
    count, n = x.shape
    y, statistics = torch.empty_like(x), x.new_empty(count, 2, dtype=torch.float32)
    residual, total = added or (x, x)
    if count and n:
        block = triton.next_power_of_2(n)
        blocks = tuned("norm_forward", (x.dtype, n), {"warps": row_warps(block)})
        _forward[(count,)](
            x, residual, total, weight.contiguous(), weight if bias is None else bias.contiguous(), y, statistics, n,
            eps,
            CENTRED=centred, ADDED=added is not None, BIASED=bias is not None, BLOCK=block, num_warps=blocks["warps"],
        )  # fmt: skip
    return y, statistics


def _gradients(
    ctx: Any, dy: Tensor, d_total: Tensor | None, need_sums: list[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Of x (and the residual), weight and bias."""
    rows, weight, statistics = ctx.saved_tensors
    count, n = rows.shape
    dx = torch.empty_like(rows)
    block = triton.next_power_of_2(max(1, n))
    blocks = tuned("norm_backward", (rows.dtype, n), {"warps": row_warps(block)})
    programs = min(count, multiprocessors(rows.device) * max(1, WARPS_PER_PROCESSOR // blocks["warps"]))
    shares = rows.new_empty(2, programs, n, dtype=torch.float32)
    if count and n:
        _backward[(programs,)](
            rows, weight.contiguous(), statistics, rows_of(dy), rows if d_total is None else rows_of(d_total),
            dx, shares[0], shares[1], count, n,
            CENTRED=ctx.centred, ADDED=d_total is not None, WEIGHT=need_sums[0], BIAS=need_sums[1], BLOCK=block,
            num_warps=blocks["warps"],
        )  # fmt: skip
    dweight, dbias = (
        share.sum(0).to(weight.dtype) if need else None for share, need in zip(shares, need_sums, strict=True)
    )
    return dx.view(dy.shape), dweight, dbias


@triton.jit
def _forward(
    x, residual, total, weight, bias, y, statistics, n, eps,
    CENTRED: tl.constexpr, ADDED: tl.constexpr, BIASED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < n
    places = row.to(tl.int64) * n + columns

    value = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    if ADDED:
        value += tl.load(residual + places, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + places, rounded, mask=inside)
        value = rounded.to(tl.float32)

    # The mean goes first: E[x^2] - E[x]^2 would cancel. What is outside of the row must not count as -mean.
    mean = tl.full((), 0.0, tl.float32)
    if CENTRED:
        mean = tl.sum(value, 0) / n
        value = tl.where(inside, value - mean, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(value * value, 0) / n + eps)
    tl.store(statistics + 2 * row, mean)
    tl.store(statistics + 2 * row + 1, inverse)

    result = value * inverse * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if BIASED:
        result += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + places, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    x, weight, statistics, dy, d_total, dx, weight_shares, bias_shares, rows, n,
    CENTRED: tl.constexpr, ADDED: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows program, program + programs, ...; `d_total` is what reaches the sum on other ways."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < n
    gain = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    weight_share = tl.zeros((BLOCK,), tl.float32)
    bias_share = tl.zeros((BLOCK,), tl.float32)
    places = program.to(tl.int64) * n + columns

    for row in range(program, rows, programs):
        up = tl.load(dy + places, mask=inside, other=0.0).to(tl.float32)
        mean, inverse = tl.load(statistics + 2 * row), tl.load(statistics + 2 * row + 1)
        normed = (tl.load(x + places, mask=inside, other=0.0).to(tl.float32) - mean) * inverse
        if WEIGHT:
            weight_share += up * normed
        if BIAS:
            bias_share += up
        # Outside of the row `up` is 0, which keeps `normed` there out of every sum.
        up *= gain
        gradient = up - normed * (tl.sum(up * normed, 0) / n)
        if CENTRED:
            gradient -= tl.sum(up, 0) / n
        gradient *= inverse
        if ADDED:
            gradient += tl.load(d_total + places, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + places, gradient.to(dx.dtype.element_ty), mask=inside)
        places += programs.to(tl.int64) * n

    if WEIGHT:
        tl.store(weight_shares + program * n + columns, weight_share, mask=inside)
    if BIAS:
        tl.store(bias_shares + program * n + columns, bias_share, mask=inside)
