"""Few queries against many keys, without gradients: Flash-Decoding (Dao et al. 2023).

A token that is generated has one query per head: with a program per query block and head, a cache of a long text would
be read by as many multiprocessors as there are heads, and the rest would idle. So the keys are split, too: a program
takes a span of them, and all query heads of one kv head as the rows of its tile, so that each key is read once and not
once per query head. Each span leaves an output and an lse; the second kernel weighs them together, as the softmax over
all keys is the softmaxes over spans, weighted by exp(lse_span - lse).

Whether a tile of keys shows anything is seen from its positions (4 bytes per key) before the keys and values are read:
empty slots of a cache and what a window hides cost no more than that.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from groundup.kernels._compiler import constant
from groundup.kernels.triton._flash import LOWEST, load_rows, positions_at, scores_of, visible
from groundup.kernels.triton._math import LOG2_E, ceil_div, channel_block, product_precision
from groundup.kernels.triton._tiles import Mask

MOST_ROWS = 64
"""Queries times heads per kv head. More are worth a tile of their own in the kernel for whole texts."""

KEY_BLOCK = {2: 64, 4: 32}
"""Keys per tile, by bytes per element: keys and values of 256 channels then take a third of the shared memory."""

WARPS = {2: 4, 4: 8}
"""By bytes per element: products of float32 keep their factors in registers, of which four warps have too few."""

PROGRAMS_PER_PROCESSOR = 2
"""One waits for memory while the other computes."""


def is_decode(q: Tensor, k: Tensor, *others: Tensor | None) -> bool:
    tensors = [x for x in (q, k, *others) if x is not None]
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    few = q.shape[1] * (q.shape[2] // k.shape[2]) <= MOST_ROWS and q.shape[1] < k.shape[1]
    return few and not trained


def decode(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, softcap: float | None,
    sinks: Tensor | None, slopes: Tensor | None, spans: int | None = None,
) -> Tensor:  # fmt: skip
    """(batch, q_seq, heads, d_value); `spans` overrides into how many the keys are split."""
    batch, q_seq, heads, d_value = *q.shape[:3], v.shape[3]
    block = KEY_BLOCK[q.element_size()]
    tiles = ceil_div(k.shape[1], block)
    lanes, rows = batch * k.shape[2], q_seq * (heads // k.shape[2])
    spans = min(tiles, spans or ceil_div(PROGRAMS_PER_PROCESSOR * _processors(q.device), max(1, lanes)))
    per_span = ceil_div(tiles, spans)
    spans = ceil_div(tiles, per_span)
    parts = q.new_empty(lanes, rows, spans, d_value, dtype=torch.float32)
    levels = q.new_empty(lanes, rows, spans, dtype=torch.float32)
    out = q.new_empty(batch, q_seq, heads, d_value)
    if not out.numel():
        return out
    _span[(spans, lanes)](
        q, k, v, parts, levels, slopes, *mask[4:], mask.q_seq, mask.k_seq, mask.window, mask.causal,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], k.shape[2], mask.rows, scale, softcap, per_span,
        GROUPS=heads // k.shape[2], D=q.shape[3], DV=d_value, ROWS=channel_block(rows),
        BLOCK_D=channel_block(q.shape[3]), BLOCK_DV=channel_block(d_value),
        BLOCK_K=block, PRECISION=product_precision(q.dtype), num_warps=WARPS[q.element_size()], num_stages=2,
    )  # fmt: skip
    join_spans[(rows, lanes)](
        parts, levels, out, sinks, k.shape[2], spans,
        GROUPS=heads // k.shape[2], DV=d_value, BLOCK_DV=channel_block(d_value), num_warps=1,
    )  # fmt: skip
    return out


@constant
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@triton.jit
def _span(
    q, k, v, parts, levels, slopes,
    q_pos, k_pos, q_segments, k_segments, anchors,
    q_seq, k_seq, window, CAUSAL: tl.constexpr,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    kv_heads, mask_rows, scale, softcap, per_span,
    GROUPS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Row r of the tile is query r // GROUPS of head r % GROUPS among those of this kv head."""
    span, lane = tl.program_id(0), tl.program_id(1)
    batch, kv_head = (lane // kv_heads).to(tl.int64), lane % kv_heads
    row, rows = batch % mask_rows, q_seq * GROUPS
    r = tl.arange(0, ROWS)
    i, head = r // GROUPS, kv_head * GROUPS + r % GROUPS
    channels = tl.arange(0, BLOCK_D)
    addresses = q + batch * q_batch + (i * q_token + head * q_head)[:, None] + channels[None, :]
    queries = tl.load(addresses, mask=(r < rows)[:, None] & (channels < D)[None, :], other=0.0)
    q_at = positions_at(q_pos, row, i, q_seq)[:, None]
    slope = None if slopes is None else tl.load(slopes + head, mask=r < rows, other=0.0).to(tl.float32)[:, None]
    largest, total = tl.full((ROWS,), LOWEST, tl.float32), tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, BLOCK_DV), tl.float32)
    for tile in range(span * per_span, tl.minimum((span + 1) * per_span, tl.cdiv(k_seq, BLOCK_K))):
        j = tile * BLOCK_K + tl.arange(0, BLOCK_K)
        k_at = positions_at(k_pos, row, j, k_seq)[None, :]
        seen = visible(
            i[:, None], j[None, :], q_at, k_at, q_segments, k_segments, anchors, row, q_seq, k_seq, window, CAUSAL
        )  # fmt: skip
        if tl.max(tl.max(seen.to(tl.int32), 1), 0) > 0:
            keys = load_rows(k + batch * k_batch + kv_head * k_head, j, k_seq, k_token, D, BLOCK_D)
            products = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            scores, _ = scores_of(products, q_at, k_at, slope, scale, softcap)
            scores = tl.where(seen, scores, float("-inf"))
            values = load_rows(v + batch * v_batch + kv_head * v_head, j, k_seq, v_token, DV, BLOCK_DV)
            largest, total, sums = weigh_tile(scores, values, largest, total, sums, PRECISION)
    leave_span(parts, levels, lane, span, r, rows, largest, total, sums, DV, BLOCK_DV)


@triton.jit
def weigh_tile(scores, values, largest, total, sums, PRECISION: tl.constexpr):
    """A step of the online softmax: the running maximum, the sum of weights and the weighted values with this tile."""
    larger = tl.maximum(largest, tl.max(scores, 1))
    weights, shrink = tl.exp2(scores - larger[:, None]), tl.exp2(largest - larger)
    total, sums = total * shrink + tl.sum(weights, 1), sums * shrink[:, None]
    sums = tl.dot(weights.to(values.dtype), values, sums, input_precision=PRECISION)
    return larger, total, sums


@triton.jit
def leave_span(
    parts, levels, lane, span, r, rows, largest, total, sums, DV: tl.constexpr, BLOCK_DV: tl.constexpr
):  # fmt: skip
    """Write a span's output and level. One that shows a query nothing has the level LOWEST, which weighs nothing."""
    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    sums = sums / total[:, None]
    level = tl.where(nothing, LOWEST, largest + tl.log2(total))
    place = (lane.to(tl.int64) * rows + r) * tl.num_programs(0) + span
    tl.store(levels + place, level, mask=r < rows)
    channels = tl.arange(0, BLOCK_DV)
    inside = (r < rows)[:, None] & (channels < DV)[None, :]
    tl.store(parts + place[:, None] * DV + channels[None, :], sums, mask=inside)


@triton.jit
def join_spans(
    parts, levels, out, sinks, kv_heads, spans, GROUPS: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr
):
    """A program: one query of one head. The sink is one more span, whose output is zero."""
    r, lane = tl.program_id(0), tl.program_id(1)
    rows, head = tl.num_programs(0), (lane % kv_heads) * GROUPS + r % GROUPS
    channels = tl.arange(0, BLOCK_DV)
    place = (lane.to(tl.int64) * rows + r) * spans
    largest, total = tl.full((), LOWEST, tl.float32), tl.full((), 0.0, tl.float32)
    sums = tl.zeros((BLOCK_DV,), tl.float32)
    if sinks is not None:
        largest = tl.maximum(LOWEST, tl.load(sinks + head).to(tl.float32) * LOG2_E)
        total += 1.0
    for span in range(spans):
        level = tl.load(levels + place + span)
        part = tl.load(parts + (place + span) * DV + channels, mask=channels < DV, other=0.0)
        larger = tl.maximum(largest, level)
        shrink, weight = tl.exp2(largest - larger), tl.exp2(level - larger)
        total, sums, largest = total * shrink + weight, sums * shrink + weight * part, larger
    queries = rows // GROUPS
    token = (lane // kv_heads).to(tl.int64) * queries + r // GROUPS
    start = (token * kv_heads * GROUPS + head) * DV
    tl.store(out + start + channels, (sums / total).to(out.dtype.element_ty), mask=channels < DV)
