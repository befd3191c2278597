"""Rotary embedding: a program turns some heads of one token, whose cosines and sines it reads once for all of them.

x is read once and written once: 4 bytes per element in bfloat16, and 8 per pair and token of the tables. In plain torch
the halves are sliced, multiplied in float32 and put together again, each time through memory.

Turning is linear, y = R x, so its backward pass is dx = R^T dy: the same kernel with the sine's sign changed, and
nothing of x is kept. (Where tables are scaled, as YaRN's are, R^T is scaled alike, and no inverse.)

x may have gaps between tokens and heads: the first channels of each head, as of a partial rotation, are turned where
they lie.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from groundup.kernels.triton._support import refuses_device, tuned

# Pairs of a program: 8 to 16 per thread, in two halves.
BLOCKS = {"PAIRS": 1024, "warps": 2}
CANDIDATES = {"rotate": [{"PAIRS": n, "warps": w} for n, w in ((512, 1), (512, 2), (1024, 4), (2048, 4), (2048, 8))]}


def refuses(x: Tensor, cos: Tensor, sin: Tensor) -> str | None:
    if cos.requires_grad or sin.requires_grad:
        return "the tables need a gradient, and the kernel makes none"
    if cos.dtype != torch.float32 or sin.dtype != torch.float32:
        return f"the tables are of {cos.dtype} and {sin.dtype}, and the kernel reads float32"
    if x.shape[-1] != 2 * cos.shape[-1]:
        return f"heads of {x.shape[-1]} channels do not fit tables of {cos.shape[-1]} pairs"
    return refuses_device(x, cos, sin)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _Rotate.apply(x, cos, sin)


def traffic(tokens: int, heads: int, d_head: int, element_bytes: int) -> int:
    """Bytes from and to DRAM, forward or backward, where each token has angles of its own."""
    return tokens * (2 * heads * d_head * element_bytes + 4 * d_head)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, backwards=False)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        return _turn(upstream[0], *ctx.saved_tensors, backwards=True), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, *, backwards: bool) -> Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    batch, seq, heads, d_head = x.shape
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel():
        pairs = triton.next_power_of_2(d_head // 2)
        blocks = tuned("rotate", (x.dtype, heads, d_head), BLOCKS)
        together = max(1, min(blocks["PAIRS"] // pairs, triton.next_power_of_2(heads)))
        _rotate[(batch * seq, triton.cdiv(heads, together))](
            x, cos, sin, y, seq, heads, d_head // 2, *x.stride()[:3], seq if cos.shape[0] > 1 else 0,
            BACKWARDS=backwards, HEADS=together, PAIRS=pairs, num_warps=blocks["warps"],
        )  # fmt: skip
    return y


@triton.jit
def _rotate(
    x, cos, sin, y, seq, heads, pairs, x_batch, x_seq, x_head, table_batch,
    BACKWARDS: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """table_batch: rows of the tables from one sequence to the next, 0 where all share one."""
    token = tl.program_id(0).to(tl.int64)
    row, place = token // seq, token % seq
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, PAIRS)[None, :]
    inside = (head < heads) & (pair < pairs)

    angle = (row * table_batch + place) * pairs + pair
    c = tl.load(cos + angle, mask=pair < pairs, other=0.0)
    s = tl.load(sin + angle, mask=pair < pairs, other=0.0)
    if BACKWARDS:
        s = -s

    source = x + row * x_batch + place * x_seq + head * x_head + pair
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + pairs, mask=inside, other=0.0).to(tl.float32)
    target = y + (token * heads + head) * 2 * pairs + pair
    tl.store(target, (first * c - second * s).to(y.dtype.element_ty), mask=inside)
    tl.store(target + pairs, (first * s + second * c).to(y.dtype.element_ty), mask=inside)
