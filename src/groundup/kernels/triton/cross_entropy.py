r"""Cross-entropy, a row of logits per program, and its fusion with the head.

With lse = log sum_j exp(x_j), the loss of a token is w (lse - x_target + z lse^2). As d lse / d x_j = p_j,
the softmax,

    d loss / d x_j = w ((1 + 2 z lse) p_j - [j = target]),

times 1 - (x_j / c)^2 where x = c tanh(raw / c) was capped softly. So all that the backward pass needs of a row are
its logits and one number, lse. That comes from one pass over the row, in tiles, by the online recurrence of
Milakov & Gimelshein 2018 (arXiv:1805.02867, algorithm 3); plain torch makes half a dozen.

`cross_entropy` writes its gradient into a tensor of its own: the logits belong to the caller, who may look at them
afterwards. `linear_cross_entropy` owns its logits, a chunk of tokens at a time, and there the gradient overwrites
them: between the matrix products, logits are read twice (the second time mostly from L2, as a row of 131,072 in
bfloat16 is 256 KiB) and written once. The idea of doing so is in Liger (Hsu et al. 2024, arXiv:2410.10989).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from groundup.kernels.triton._math import LOG2_E, LOG_2, differentiable_once, tanh
from groundup.kernels.triton._support import refuses_device, row_block, row_warps, rows_of, tuned

LOGITS_BYTES = 2**30
"""Of one chunk of logits. Per chunk, weight's gradient (float32) is read and written once beside the matrix products:
on an H200 (4 TB/s, 0.7 PFLOP/s in practice) that takes as long as the products of 290 tokens, hence long chunks."""

CANDIDATES = {
    "cross_entropy": [
        {"BLOCK": block, "warps": warps}
        for block, warps in ((2048, 4), (2048, 8), (4096, 4), (4096, 8), (4096, 16), (8192, 8), (8192, 32))
    ]
}

CHUNKS = (256, 8192)
"""Fewest and most tokens of a chunk: fewer do not fill a GPU, more save nothing."""


def refuses_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, z_loss: float = 0.0
) -> str | None:
    return refuses_device(logits, targets, weights) or _refuses(weights)


def cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    shares = _shares(targets, weights)
    losses = _CrossEntropy.apply(logits, targets.flatten(), shares.flatten(), float(z_loss))
    return losses.sum(), shares.sum()


def refuses_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None = None, **options: Any
) -> str | None:
    return refuses_device(hidden, weight, targets, weights) or _refuses(weights)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    chunk: int | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """`compiled` asks that all between the matrix products be one kernel, which it is here in either case."""
    rows, shares = hidden.flatten(0, -2), _shares(targets, weights)
    chunk = default_chunk(weight.shape[0], rows.element_size()) if chunk is None else chunk
    cap = None if softcap is None else float(softcap)
    total = _LinearCrossEntropy.apply(rows, weight, targets.flatten(), shares.flatten(), chunk, cap, float(z_loss))
    return total, shares.sum()


def traffic_cross_entropy(tokens: int, vocab: int, element_bytes: int, *, backward: bool = False) -> int:
    """Bytes from and to DRAM: logits forward; logits and their gradient backward; some 16 more per row."""
    return tokens * (vocab * element_bytes * (2 if backward else 1) + 16)


def default_chunk(vocab: int, element_bytes: int) -> int:
    """Tokens: the power of two whose logits fit into `LOGITS_BYTES`, within `CHUNKS`."""
    fitting = max(1, LOGITS_BYTES // (vocab * element_bytes))
    return min(CHUNKS[1], max(CHUNKS[0], 1 << (fitting.bit_length() - 1)))


def _refuses(weights: Tensor | None) -> str | None:
    if weights is not None and weights.requires_grad:
        return "the weights of tokens require a gradient, which the kernel does not compute"
    return None


def _shares(targets: Tensor, weights: Tensor | None) -> Tensor:
    """Each token's weight in float32, 0 where the target is negative."""
    known = targets >= 0
    return known.float() if weights is None else torch.where(known, weights.float(), 0.0)


class _CrossEntropy(torch.autograd.Function):
    """(tokens,) weighted losses. Keeps the logits and, per row, lse."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, shares: Tensor, z_loss: float) -> Tensor:
        rows = rows_of(logits)
        losses, lse = shares.new_empty(len(rows)), shares.new_empty(len(rows))
        launch(rows, None, targets, shares, losses, lse, None, z_loss)
        ctx.save_for_backward(rows, targets, shares, lse)
        ctx.z_loss, ctx.shape = z_loss, logits.shape
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        differentiable_once(ctx)
        rows, targets, shares, lse = ctx.saved_tensors
        gradient = torch.empty_like(rows)
        launch(rows, gradient, targets, shares * upstream[0], None, lse, None, ctx.z_loss)
        return gradient.view(ctx.shape), None, None, None


class _LinearCrossEntropy(torch.autograd.Function):
    """Both gradients are computed forward, while a chunk's logits are at hand: three matrix products in all."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        shares: Tensor,
        chunk: int,
        softcap: float | None,
        z_loss: float,
    ) -> Tensor:
        head, losses = weight.to(hidden.dtype), shares.new_empty(len(shares))
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = hidden[part] @ head.T
            gradient = logits if need_hidden or need_weight else None
            launch(logits, gradient, targets[part], shares[part], losses[part], None, softcap, z_loss)
            if d_hidden is not None:
                d_hidden[part] = logits @ head
            if d_weight is not None:
                d_weight += logits.T @ hidden[part]
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_dtype = weight.dtype
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        differentiable_once(ctx)
        d_hidden, d_weight = ctx.saved_tensors
        return (
            None if d_hidden is None else (d_hidden * upstream[0]).to(d_hidden.dtype),
            None if d_weight is None else (d_weight * upstream[0]).to(ctx.weight_dtype),
            *[None] * 5,
        )


def launch(
    logits: Tensor,
    gradient: Tensor | None,
    targets: Tensor,
    shares: Tensor,
    losses: Tensor | None,
    lse: Tensor | None,
    softcap: float | None,
    z_loss: float,
    blocks: tuple[int, int] | None = None,
) -> None:
    """One program per row of contiguous `logits` (tokens, vocab).

    losses: written where given; then lse is computed, and kept where that is given too. Without losses, lse is read
    gradient: written where given; it may be `logits` itself
    blocks: elements per tile and warps, instead of the default
    """
    tokens, vocab = logits.shape
    default = {"BLOCK": row_block(vocab), "warps": row_warps(row_block(vocab))}
    if blocks is None:
        chosen = tuned("cross_entropy", (logits.dtype, vocab), default)
        blocks = chosen["BLOCK"], chosen["warps"]
    block, warps = blocks
    if tokens:
        _rows[(tokens,)](
            logits, gradient, targets, shares, losses, lse, vocab, softcap, z_loss, BLOCK=block, num_warps=warps
        )  # fmt: skip


@triton.jit
def _rows(logits, gradient, targets, shares, losses, kept, n, softcap, z_loss, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    start = row.to(tl.int64) * n
    target, share = tl.load(targets + row), tl.load(shares + row)
    loss, lse = 0.0, 0.0
    # A row of no weight is not even read: its loss may be infinite, and its gradient is zero.
    if share != 0.0:
        if losses is None:
            lse = tl.load(kept + row)
        else:
            lse = _log_sum_exp(logits + start, n, softcap, BLOCK)
            # A target beyond the vocabulary has no logit: NaN says so.
            picked = tl.load(logits + start + target, mask=target < n, other=float("nan"))
            loss = share * (lse - _capped(picked, softcap) + z_loss * lse * lse)
        if gradient is not None:
            # The target's logit may be overwritten below.
            tl.debug_barrier()
            _write_gradient(logits + start, gradient + start, target, share, lse, n, softcap, z_loss, BLOCK)
    elif gradient is not None:
        _write_zeros(gradient + start, n, BLOCK)
    if losses is not None:
        tl.store(losses + row, loss)
        if kept is not None:
            tl.store(kept + row, lse)


@triton.jit
def _capped(raw, softcap):
    raw = raw.to(tl.float32)
    if softcap is not None:
        raw = softcap * tanh(raw / softcap)
    return raw


@triton.jit
def _log_sum_exp(x, n, softcap, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    # The sum so far counts from the maximum so far: a larger one shrinks what was summed before.
    largest, total = tl.full((), float("-inf"), tl.float32), tl.full((), 0.0, tl.float32)
    for begin in range(0, n, BLOCK):
        tile = tl.load(x + begin + columns, mask=begin + columns < n, other=float("-inf"))
        tile = _capped(tile, softcap)
        if softcap is not None:
            tile = tl.where(begin + columns < n, tile, float("-inf"))
        larger = tl.maximum(largest, tl.max(tile, 0))
        # Until something finite came, there is nothing to count from.
        base = tl.where(larger == float("-inf"), 0.0, larger)
        total = total * tl.exp2((largest - base) * LOG2_E) + tl.sum(tl.exp2((tile - base) * LOG2_E), 0)
        largest = larger
    return largest + tl.log2(total) * LOG_2


@triton.jit
def _write_gradient(x, dx, target, share, lse, n, softcap, z_loss, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    factor = share * (1.0 + 2.0 * z_loss * lse)
    for begin in range(0, n, BLOCK):
        inside = begin + columns < n
        tile = _capped(tl.load(x + begin + columns, mask=inside, other=0.0), softcap)
        slope = factor * tl.exp2((tile - lse) * LOG2_E) - tl.where(begin + columns == target, share, 0.0)
        if softcap is not None:
            slope *= 1.0 - (tile / softcap) * (tile / softcap)
        tl.store(dx + begin + columns, slope.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def _write_zeros(dx, n, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    for begin in range(0, n, BLOCK):
        tl.store(dx + begin + columns, tl.zeros((BLOCK,), dx.dtype.element_ty), mask=begin + columns < n)
