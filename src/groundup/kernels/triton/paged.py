"""Flash-Decoding over pages (Dao et al. 2023; Kwon et al. 2023, arXiv:2309.06180), without gradients.

As `_decode`, a program takes a span of one sequence's keys, and all query heads of one kv head as the rows of its tile;
a second kernel weighs the spans together. A tile of keys looks up the page of each of its positions. The row's length
and what a window hides are found from its queries' positions on the device, tile by tile:

    window 8, two sink tokens, tiles of 4, query at 21        tiles that are read
    0 1 2 3 | 4 5 6 7 | 8 9 10 11 | 12 13 14 15 | 16 ...      0, 3, 4, 5: no others are ever touched

So the grid is the same for rows of any length, and a CUDA graph of a call can be replayed while they grow. Spans of a
short row that have no tile end at once.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from groundup.kernels.paged import MOST_ROWS
from groundup.kernels.triton import _decode
from groundup.kernels.triton._decode import PROGRAMS_PER_PROCESSOR, join_spans, leave_span, weigh_tile
from groundup.kernels.triton._flash import LOWEST, scores_of
from groundup.kernels.triton._math import ceil_div, channel_block, product_precision
from groundup.kernels.triton._support import multiprocessors, refuses_device

MOST_CHANNELS = 256


def refuses_paged_attention(
    q: Tensor, keys: Tensor, values: Tensor, q_pos: Tensor, tables: Tensor, *, page_size: int, **options: Any
) -> str | None:
    others = [option for option in options.values() if isinstance(option, Tensor)]
    if fault := refuses_device(q, keys, values, q_pos, tables, *others):
        return fault
    if not q.dtype == keys.dtype == values.dtype:
        return f"q, keys and values are of one type for the kernel, not of {q.dtype}, {keys.dtype} and {values.dtype}"
    if keys.shape[:2] != values.shape[:2] or q.shape[3] != keys.shape[2] or q.shape[2] % keys.shape[1]:
        return f"the shapes {tuple(q.shape)}, {tuple(keys.shape)} and {tuple(values.shape)} do not fit"
    if max(q.shape[3], values.shape[2]) > MOST_CHANNELS:
        return f"a head has {max(q.shape[3], values.shape[2])} channels, and at most {MOST_CHANNELS} fit into registers"
    if (rows := q.shape[1] * (q.shape[2] // keys.shape[1])) > MOST_ROWS:
        return f"{rows} queries times heads share a key, and a tile takes {MOST_ROWS}"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, keys, values)):
        return "a gradient is wanted, and decoding has none"
    return None


def paged_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    q_pos: Tensor,
    tables: Tensor,
    *,
    page_size: int,
    window: int | None = None,
    sink_tokens: int = 0,
    softcap: float | None = None,
    scale: float | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    batch, q_seq, heads, d_head = q.shape
    kv_heads, d_value = values.shape[1:]
    out = q.new_empty(batch, q_seq, heads, d_value)
    if not out.numel():
        return out
    q, keys, values = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, keys, values))
    q_pos, tables = q_pos.contiguous(), tables if tables.stride(1) == 1 else tables.contiguous()
    block, lanes, rows = _decode.KEY_BLOCK[q.element_size()], batch * kv_heads, q_seq * (heads // kv_heads)
    spans = span_count(tables.shape[1] * page_size, block, lanes, multiprocessors(q.device))
    parts = q.new_empty(lanes, rows, spans, d_value, dtype=torch.float32)
    levels = q.new_empty(lanes, rows, spans, dtype=torch.float32)
    _pages[(spans, lanes)](
        q, keys, values, parts, levels, slopes, q_pos, tables, q_seq, window, tables.stride(0),
        *q.stride()[:3], *keys.stride()[:2], *values.stride()[:2], kv_heads,
        d_head**-0.5 if scale is None else float(scale), None if softcap is None else float(softcap),
        GROUPS=heads // kv_heads, D=d_head, DV=d_value, ROWS=channel_block(rows), SINK_TOKENS=sink_tokens,
        BLOCK_D=channel_block(d_head), BLOCK_DV=channel_block(d_value), BLOCK_K=block, PAGE=page_size,
        PRECISION=product_precision(q.dtype), num_warps=_decode.WARPS[q.element_size()], num_stages=2,
    )  # fmt: skip
    join_spans[(rows, lanes)](
        parts, levels, out, sinks, kv_heads, spans,
        GROUPS=heads // kv_heads, DV=d_value, BLOCK_DV=channel_block(d_value), num_warps=1,
    )  # fmt: skip
    return out


def span_count(capacity: int, block: int, lanes: int, processors: int) -> int:
    """Into how many spans keys are split: enough programs for every multiprocessor, and a tile for each at least.

    From what a row can hold, not from what it holds: that is known on the device only.
    """
    return max(1, min(ceil_div(capacity, block), ceil_div(PROGRAMS_PER_PROCESSOR * processors, lanes)))


def traffic_paged_attention(
    lengths: int, batch: int, q_seq: int, heads: int, kv_heads: int, d_head: int, d_value: int, element_bytes: int
) -> int:
    """Bytes from and to DRAM: each visible key and value once (`lengths` is their number over all rows), queries,
    output. What the spans leave is small and stays in the L2 cache."""
    queries = batch * q_seq * heads
    return (lengths * kv_heads + queries) * (d_head + d_value) * element_bytes


@triton.jit
def _pages(
    q, keys, values, parts, levels, slopes, q_pos, tables, q_seq, window, table_row,
    q_batch, q_token, q_head, k_slot, k_head, v_slot, v_head, kv_heads, scale, softcap,
    GROUPS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, ROWS: tl.constexpr, SINK_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_K: tl.constexpr, PAGE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Row r of the tile is query r // GROUPS of head r % GROUPS among those of this kv head."""
    span, lane = tl.program_id(0), tl.program_id(1)
    batch, kv_head = (lane // kv_heads).to(tl.int64), lane % kv_heads
    rows = q_seq * GROUPS
    r = tl.arange(0, ROWS)
    i, head = r // GROUPS, kv_head * GROUPS + r % GROUPS
    channels = tl.arange(0, BLOCK_D)
    addresses = q + batch * q_batch + (i * q_token + head * q_head)[:, None] + channels[None, :]
    queries = tl.load(addresses, mask=(r < rows)[:, None] & (channels < D)[None, :], other=0.0)
    q_at = tl.load(q_pos + batch * q_seq + i, mask=r < rows, other=-1).to(tl.int32)
    slope = None if slopes is None else tl.load(slopes + head, mask=r < rows, other=0.0).to(tl.float32)[:, None]
    end = tl.max(q_at, 0) + 1
    front, begin = end * 0, end * 0
    if window is not None:
        first = tl.min(tl.where(q_at < 0, end, q_at), 0)
        begin = tl.maximum(first - window + 1, 0) // BLOCK_K
        front = tl.minimum(begin, tl.cdiv(SINK_TOKENS, BLOCK_K))
    tiles = front + tl.cdiv(end, BLOCK_K) - begin
    per_span = tl.cdiv(tiles, tl.num_programs(0))
    largest, total = tl.full((ROWS,), LOWEST, tl.float32), tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, BLOCK_DV), tl.float32)
    for step in range(span * per_span, tl.minimum((span + 1) * per_span, tiles)):
        at = tl.where(step < front, step, step - front + begin) * BLOCK_K + tl.arange(0, BLOCK_K)
        page = tl.load(tables + batch * table_row + at // PAGE, mask=at < end, other=0).to(tl.int64)
        slot = page * PAGE + at % PAGE
        key_tile = _load_slots(keys + kv_head * k_head, slot, at < end, k_slot, D, BLOCK_D)
        products = tl.dot(queries, tl.trans(key_tile), input_precision=PRECISION)
        scores, _ = scores_of(products, q_at[:, None], at[None, :], slope, scale, softcap)
        seen = at[None, :] <= q_at[:, None]
        if window is not None:
            seen = seen & ((q_at[:, None] - at[None, :] < window) | (at < SINK_TOKENS)[None, :])
        scores = tl.where(seen, scores, float("-inf"))
        value_tile = _load_slots(values + kv_head * v_head, slot, at < end, v_slot, DV, BLOCK_DV)
        largest, total, sums = weigh_tile(scores, value_tile, largest, total, sums, PRECISION)
    leave_span(parts, levels, lane, span, r, rows, largest, total, sums, DV, BLOCK_DV)


@triton.jit
def _load_slots(start, slots, known, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """A block (slots, BLOCK) of rows of WIDTH channels; zeros where a slot is not known."""
    channels = tl.arange(0, BLOCK)
    inside = known[:, None]
    if WIDTH != BLOCK:
        inside = inside & (channels[None, :] < WIDTH)
    return tl.load(start + slots[:, None] * stride + channels[None, :], mask=inside, other=0.0)
