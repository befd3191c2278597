"""The short causal convolution: a tile of tokens and channels per program, forward and backward.

Plain torch copies x behind what came before it, and makes each of its few taps a pass over memory of its own. Here a
program reads its tile once for each tap, but all the times after the first from cache, and writes one result.

Rows are counted from the first of `before`: row u holds what came at token u - (kernel - 1), and token t reads rows t
to t + kernel - 1. Backward, row u gives to tokens u - kernel + 1 to u.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from groundup.kernels.triton._math import differentiable_once
from groundup.kernels.triton._support import refuses_device, tuned

BLOCKS = {"TOKENS": 32, "CHANNELS": 64, "warps": 4}
CANDIDATES = {
    "causal_convolution": [
        {"TOKENS": t, "CHANNELS": c, "warps": w} for t, c, w in ((16, 128, 4), (32, 64, 4), (64, 64, 4), (32, 128, 8))
    ]
}


def refuses(x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor, resets: Tensor | None = None) -> str | None:
    if x.shape[0] > 65_535:
        return f"a batch of {x.shape[0]} is more than a grid has places for (65,535)"
    return refuses_device(x, weight, bias, before)


def causal_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor, resets: Tensor | None = None
) -> Tensor:
    assert before.shape[1] == weight.shape[1] - 1, f"{before.shape[1]} inputs before the first"
    documents = None if resets is None else resets.cumsum(1, dtype=torch.int32)
    return _Convolution.apply(x, weight, bias, before.to(x.dtype), documents)


def traffic(elements: int, element_bytes: int, *, backward: bool = False) -> int:
    """Bytes from and to DRAM: x and y forward; x, dy and dx backward. Left out: the few weights, and the parts of their
    gradients, which for kernels of 4 and bfloat16 are a fifth of the rest."""
    return elements * element_bytes * (3 if backward else 2)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor, documents: Tensor | None
    ) -> Tensor:
        x, before, weight = x.contiguous(), before.contiguous(), weight.contiguous()
        bias = None if bias is None else bias.contiguous()
        y = torch.empty_like(x)
        if y.numel():
            shape, grid = _tiles(x, x.shape[1])
            _forward[grid](
                x, before, weight, bias, documents, y, *x.shape[1:], KERNEL=weight.shape[1], **shape
            )  # fmt: skip
        ctx.save_for_backward(x, weight, before, documents)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        differentiable_once(ctx)
        x, weight, before, documents = ctx.saved_tensors
        kernel, channels = weight.shape[1], x.shape[2]
        dx, dbefore = torch.empty_like(x), torch.empty_like(before)
        # Of each tile: its part of the gradient of every weight, and of the bias. Added up in a fixed order.
        shape, grid = _tiles(x, x.shape[1] + kernel - 1)
        parts = x.new_zeros(x.shape[0], grid[0], kernel + 1, channels, dtype=torch.float32)
        if parts.numel():
            _backward[grid](
                x, before, weight, documents, upstream[0].contiguous(), dx, dbefore, parts, *x.shape[1:],
                KERNEL=kernel, **shape,
            )  # fmt: skip
        of_weights = parts.sum((0, 1))
        dbias = None if ctx.bias_dtype is None else of_weights[-1].to(ctx.bias_dtype)
        return dx, of_weights[:-1].T.to(weight.dtype), dbias, dbefore, None


def _tiles(x: Tensor, rows: int) -> tuple[dict[str, int], tuple[int, int, int]]:
    """Sizes of a tile, and how many there are."""
    blocks = tuned("causal_convolution", (x.dtype,), BLOCKS)
    grid = triton.cdiv(rows, blocks["TOKENS"]), triton.cdiv(x.shape[2], blocks["CHANNELS"]), x.shape[0]
    return {"TOKENS": blocks["TOKENS"], "CHANNELS": blocks["CHANNELS"], "num_warps": blocks["warps"]}, grid


@triton.jit
def _row(x, before, row, channel, seq, channels, KERNEL: tl.constexpr):
    """Rows of the inputs: `before`, then x; zeros beyond. x and before point at this sequence."""
    earlier: tl.constexpr = KERNEL - 1
    inside = (channel < channels)[None]
    first = tl.load(before + row[:, None] * channels + channel[None], mask=(row < earlier)[:, None] & inside, other=0.0)
    token = row - earlier
    place = token.to(tl.int64)[:, None] * channels + channel[None]
    own = tl.load(x + place, mask=((token >= 0) & (token < seq))[:, None] & inside, other=0.0)
    return first.to(tl.float32) + own.to(tl.float32)


@triton.jit
def _document(documents, token, seq):
    """Of tokens; what came before the first one belongs to document 0."""
    return tl.load(documents + token, mask=(token >= 0) & (token < seq), other=0)


@triton.jit
def _forward(
    x, before, weight, bias, documents, y, seq, channels,
    KERNEL: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    sequence = tl.program_id(2).to(tl.int64)
    x += sequence * seq * channels
    before += sequence * (KERNEL - 1) * channels
    total = tl.zeros((TOKENS, CHANNELS), tl.float32)
    if bias is not None:
        total += tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)[None]
    for i in tl.static_range(KERNEL):  # pyright: ignore[reportGeneralTypeIssues]
        tap = _row(x, before, token + i, channel, seq, channels, KERNEL)
        if documents is not None:
            mine = _document(documents + sequence * seq, token, seq)
            then = _document(documents + sequence * seq, token + i - (KERNEL - 1), seq)
            tap = tl.where((mine == then)[:, None], tap, 0.0)
        factor = tl.load(weight + channel * KERNEL + i, mask=channel < channels, other=0.0).to(tl.float32)
        total += tap * factor[None]
    place = sequence * seq * channels + token.to(tl.int64)[:, None] * channels + channel[None]
    tl.store(y + place, total.to(y.dtype.element_ty), mask=(token < seq)[:, None] & (channel < channels)[None])


@triton.jit
def _backward(
    x, before, weight, documents, dy, dx, dbefore, parts, seq, channels,
    KERNEL: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradients of the rows of a tile; and of weights and bias, from the tokens with the same numbers."""
    earlier: tl.constexpr = KERNEL - 1
    row = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    sequence = tl.program_id(2).to(tl.int64)
    inside = (channel < channels)[None]
    x += sequence * seq * channels
    before += sequence * earlier * channels
    dy += sequence * seq * channels
    part = parts + ((sequence * tl.num_programs(0) + tl.program_id(0)) * (KERNEL + 1)) * channels + channel
    own = tl.load(
        dy + row.to(tl.int64)[:, None] * channels + channel[None], mask=(row < seq)[:, None] & inside, other=0.0
    ).to(tl.float32)
    tl.store(part + KERNEL * channels, tl.sum(own, 0), mask=channel < channels)
    total = tl.zeros((TOKENS, CHANNELS), tl.float32)
    for i in tl.static_range(KERNEL):  # pyright: ignore[reportGeneralTypeIssues]
        reader = row - i  # the token to which this row is tap i
        up = tl.load(
            dy + reader.to(tl.int64)[:, None] * channels + channel[None],
            mask=((reader >= 0) & (reader < seq))[:, None] & inside, other=0.0,
        ).to(tl.float32)  # fmt: skip
        tap = _row(x, before, row + i, channel, seq, channels, KERNEL)
        if documents is not None:
            of = documents + sequence * seq
            seen = _document(of, reader, seq) == _document(of, row - earlier, seq)
            up = tl.where(seen[:, None], up, 0.0)
            seen = _document(of, row, seq) == _document(of, row + i - earlier, seq)
            tap = tl.where(seen[:, None], tap, 0.0)
        factor = tl.load(weight + channel * KERNEL + i, mask=channel < channels, other=0.0).to(tl.float32)
        total += up * factor[None]
        tl.store(part + i * channels, tl.sum(own * tap, 0), mask=channel < channels)
    token = row - earlier
    place = sequence * seq * channels + token.to(tl.int64)[:, None] * channels + channel[None]
    tl.store(dx + place, total.to(dx.dtype.element_ty), mask=((token >= 0) & (token < seq))[:, None] & inside)
    place = sequence * earlier * channels + row[:, None] * channels + channel[None]
    tl.store(dbefore + place, total.to(dbefore.dtype.element_ty), mask=(row < earlier)[:, None] & inside)
