"""One matrix product per expert in a single launch, in tiles that a table on the device assigns.

How many rows each expert got is known on the device only, and asking would stop the host until the GPU is done. What
the host does know is a bound: experts that fill T tiles of rows if joined fill at most T + experts if each begins a
tile of its own. So that many are launched. A table says for each tile whose it is and where it begins, made by a few
small operations on the device; the tiles left over end at once. As in MegaBlocks (Gale et al. 2022, section 5.1,
arXiv:2211.15841), without its padding of rows.

With Y_e = X_e W_e^T, the gradients are dX_e = dY_e W_e, which is the same product with W read the other way round,
and dW_e = dY_e^T X_e, where the rows are what is summed over: each tile of dW_e goes through all rows of its expert,
and is zero if there are none.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundup.kernels._compiler import constant
from groundup.kernels.triton._support import refuses_device, tuned_tuple

PANEL = 8
"""Tiles of rows that share a tile of weights one after another, while the L2 cache still has it."""


class Blocks(NamedTuple):
    """A tile of the result is rows x columns; `inner` is how much of the sum a step takes."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


CANDIDATES = {
    launcher: [
        {"columns": columns, "inner": inner, "warps": warps, "stages": stages}
        for columns, inner, warps, stages in ((64, 64, 4, 3), (64, 64, 4, 4), (128, 32, 4, 4), (128, 64, 4, 3))
        + ((128, 64, 8, 4), (256, 64, 8, 3), (256, 32, 8, 4))
    ]
    for launcher in ("grouped_product", "grouped_weights")
}


def blocks_for(rows: int, experts: int, element_bytes: int) -> Blocks:
    """Tiles as high as an expert's even share of the rows, so that few rows do not compute with padding.

    128 x 128 is two warpgroups' accumulators at 64 registers per thread. float32 takes half of it: its operands are
    twice as large in shared memory.
    """
    share = triton.next_power_of_2(max(1, rows // max(1, experts)))
    if element_bytes == 4:
        return Blocks(min(64, max(16, share)), 64, 32, 4, 2)
    high = min(128, max(16, share))
    return Blocks(high, 128, 64, 8 if high == 128 else 4, 3)


def _blocks(launcher: str, rows: Tensor, other: int, experts: int) -> Blocks:
    """`other`: the side of the weights that is not summed over. Forward, and backward for the rows, share an answer."""
    default = blocks_for(len(rows), experts, rows.element_size())
    sides = sorted((rows.shape[1], other))
    return tuned_tuple(launcher, (rows.dtype, default.rows, *sides), default)


def refuses(rows: Tensor, weights: Tensor, ends: Tensor) -> str | None:
    if rows.dtype != weights.dtype:
        return f"the kernel multiplies numbers of one type, and rows are {rows.dtype}, weights {weights.dtype}"
    return refuses_device(rows, weights, ends)


def grouped_matmul(rows: Tensor, weights: Tensor, ends: Tensor, blocks: Blocks | None = None) -> Tensor:
    return _GroupedMatmul.apply(rows, weights, ends, blocks)


def traffic(rows: int, experts: int, d_in: int, d_out: int, element_bytes: int, *, backward: bool = False) -> int:
    """Bytes from and to DRAM, each matrix once. Backward: both products read dY; one reads W, the other X."""
    x, w, y = rows * d_in, experts * d_in * d_out, rows * d_out
    return element_bytes * (2 * (x + w + y) if backward else x + w + y)


class _GroupedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, ends: Tensor, blocks: Blocks | None) -> Tensor:
        rows, weights, ends = rows.contiguous(), weights.contiguous(), ends.contiguous()
        ctx.save_for_backward(rows, weights, ends)
        ctx.blocks = blocks
        return _product(rows, weights, ends, blocks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        rows, weights, ends = ctx.saved_tensors
        dy = upstream[0].contiguous()
        dx = _product(dy, weights.mT, ends, ctx.blocks) if ctx.needs_input_grad[0] else None
        dw = _weight_gradient(dy, rows, ends, ctx.blocks) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None


@constant
def _precision() -> str:
    """How float32 is multiplied: as torch's own products are."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _product(rows: Tensor, weights: Tensor, ends: Tensor, blocks: Blocks | None) -> Tensor:
    """rows W_e^T for weights (experts, d_out, d_in) of any strides."""
    (n, d_in), (experts, d_out, _) = rows.shape, weights.shape
    out = rows.new_empty(n, d_out)
    if n and d_out:
        block = blocks or _blocks("grouped_product", rows, d_out, experts)
        table, tiles = tile_table(ends, n, block.rows)
        _multiply[(tiles * triton.cdiv(d_out, block.columns),)](
            rows, weights, out, table, tiles, d_in, d_out, experts, *weights.stride(),
            ROWS=block.rows, COLUMNS=block.columns, INNER=block.inner, PANEL=PANEL, PRECISION=_precision(),
            num_warps=block.warps, num_stages=block.stages,
        )  # fmt: skip
    return out


def tile_table(ends: Tensor, rows: int, height: int) -> tuple[Tensor, int]:
    """(tiles, 3): owner, first row and end of each tile, without waiting for the device; and the number of tiles.

    The rows that belong to nobody are one more owner, number `experts`. A tile left over has its end at its first row.
    """
    experts, places = len(ends), {"dtype": torch.int64, "device": ends.device}
    bounds = torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), rows)]).to(torch.int64)
    begins, counts = bounds[:-1], bounds.diff()
    last_tiles = ((counts + height - 1) // height).cumsum(0)
    tiles = triton.cdiv(rows, height) + experts
    tile = torch.arange(tiles, **places)
    owner = torch.searchsorted(last_tiles, tile, right=True)
    spare = owner > experts
    owner = owner.clamp(max=experts)
    before = (last_tiles - (counts + height - 1) // height)[owner]
    first = begins[owner] + (tile - before) * height
    end = torch.where(spare, first, torch.minimum(first + height, bounds[1:][owner]))
    return torch.stack([owner, first, end], 1), tiles


def _weight_gradient(dy: Tensor, rows: Tensor, ends: Tensor, blocks: Blocks | None) -> Tensor:
    d_in, d_out, experts = rows.shape[1], dy.shape[1], len(ends)
    dw = rows.new_empty(experts, d_out, d_in)
    if dw.numel():
        block = blocks or _blocks("grouped_weights", rows, d_out, 1)
        # A tile of dW is `columns` high and wide; the rows, which are summed over, go through in steps.
        grid = (triton.cdiv(d_out, block.columns) * triton.cdiv(d_in, block.columns), experts)
        _multiply_transposed[grid](
            dy, rows, dw, ends, d_in, d_out,
            COLUMNS=block.columns, INNER=block.inner, PRECISION=_precision(),
            num_warps=block.warps, num_stages=block.stages,
        )  # fmt: skip
    return dw


@triton.jit
def _multiply(
    x, w, y, table, tiles, d_in, d_out, experts, stride_expert, stride_out, stride_in,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, PANEL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Programs go down a panel of tiles of rows before they go on to the next columns of the weights.
    column_tiles = tl.cdiv(d_out, COLUMNS)
    panel = tl.program_id(0) // (PANEL * column_tiles)
    within = tl.program_id(0) % (PANEL * column_tiles)
    height = tl.minimum(tiles - panel * PANEL, PANEL)
    tile = panel * PANEL + within % height
    columns = (within // height) * COLUMNS + tl.arange(0, COLUMNS)

    owner, first, end = tl.load(table + 3 * tile), tl.load(table + 3 * tile + 1), tl.load(table + 3 * tile + 2)
    if first < end:
        rows = first + tl.arange(0, ROWS)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        # Rows that belong to nobody skip the sum: they are zero.
        for begin in range(0, tl.where(owner < experts, d_in, 0), INNER):
            inner = begin + tl.arange(0, INNER)
            left = tl.load(
                x + rows[:, None] * d_in + inner[None, :],
                mask=(rows < end)[:, None] & (inner < d_in)[None, :],
                other=0.0,
            )
            right = tl.load(
                w + owner * stride_expert + inner[:, None] * stride_in + columns[None, :] * stride_out,
                mask=(inner < d_in)[:, None] & (columns < d_out)[None, :],
                other=0.0,
            )
            total = tl.dot(left, right, total, input_precision=PRECISION)
        inside = (rows < end)[:, None] & (columns < d_out)[None, :]
        tl.store(y + rows[:, None] * d_out + columns[None, :], total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _multiply_transposed(
    dy, x, dw, ends, d_in, d_out,
    COLUMNS: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dW_e = dY_e^T X_e, a tile of `COLUMNS` x `COLUMNS` per program."""
    expert = tl.program_id(1).to(tl.int64)
    out_tiles = tl.cdiv(d_out, COLUMNS)
    outs = (tl.program_id(0) % out_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    ins = (tl.program_id(0) // out_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.load(ends + expert - 1, mask=expert > 0, other=0).to(tl.int64)
    end = tl.load(ends + expert).to(tl.int64)
    total = tl.zeros((COLUMNS, COLUMNS), tl.float32)
    for begin in range(first, end, INNER):
        rows = begin + tl.arange(0, INNER)
        left = tl.load(
            dy + rows[:, None] * d_out + outs[None, :], mask=(rows < end)[:, None] & (outs < d_out)[None, :], other=0.0
        )
        right = tl.load(
            x + rows[:, None] * d_in + ins[None, :], mask=(rows < end)[:, None] & (ins < d_in)[None, :], other=0.0
        )
        total = tl.dot(tl.trans(left), right, total, input_precision=PRECISION)
    inside = (outs < d_out)[:, None] & (ins < d_in)[None, :]
    place = dw + (expert * d_out + outs[:, None]) * d_in + ins[None, :]
    tl.store(place, total.to(dw.dtype.element_ty), mask=inside)
