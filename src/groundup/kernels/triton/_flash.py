"""The three kernels of FlashAttention-2: one forward, two backward. What they compute is derived in `attention`.

Names: i are places of queries, j of keys; `products` q . k; `scores` in base 2, so that exp(s) is 2 ** scores;
`weights` P. Arguments of all three: the mask's tensors (see `_tiles.Mask`; None where it has none), the lists of
tiles, strides of batch, token and head, `mask_rows` 1 or batch, and sizes known when compiling. The statistics
lse and delta are (batch, heads, q_seq) in float32, lse in base 2, +inf for a query that sees nothing.
"""

import triton
import triton.language as tl

from groundup.kernels.triton._math import LOG2_E, tanh

LOWEST: tl.constexpr = tl.constexpr(-1e30)
"""Where a running maximum starts: below every score, and, unlike -inf, its difference from itself is no NaN."""


@triton.jit
def load_rows(start, places, length, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """A block (places, BLOCK) of rows of WIDTH channels; zeros outside."""
    channels = tl.arange(0, BLOCK)
    addresses = start + places.to(tl.int64)[:, None] * stride + channels[None, :]
    inside = places[:, None] < length
    if WIDTH != BLOCK:
        inside = inside & (channels[None, :] < WIDTH)
    return tl.load(addresses, mask=inside, other=0.0)


@triton.jit
def store_rows(start, block, places, length, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    channels = tl.arange(0, BLOCK)
    addresses = start + places.to(tl.int64)[:, None] * stride + channels[None, :]
    inside = (places[:, None] < length) & (channels[None, :] < WIDTH)
    tl.store(addresses, block.to(start.dtype.element_ty), mask=inside)


@triton.jit
def positions_at(positions, row, places, length):
    """Of places; a place is its own position where no tensor is given. -1 beyond the end."""
    if positions is None:
        found = tl.where(places < length, places, -1)
    else:
        found = tl.load(positions + row * length + places, mask=places < length, other=-1)
    return found


@triton.jit
def visible(
    i, j, q_at, k_at, q_segments, k_segments, anchors, row, q_seq, k_seq, window, CAUSAL: tl.constexpr
):  # fmt: skip
    """`kernels.visible` of a tile: i and q_at (positions) are of shape (n, 1) and j and k_at (1, m), or the reverse."""
    seen = (q_at >= 0) & (k_at >= 0)
    distance = q_at - k_at
    if CAUSAL:
        seen = seen & (distance >= 0)
    if window is not None:
        near = tl.abs(distance) < window
        if anchors is not None:
            near = near | (tl.load(anchors + row * k_seq + j, mask=j < k_seq, other=0) != 0)
        seen = seen & near
    if q_segments is not None:
        q_segment = tl.load(q_segments + row * q_seq + i, mask=i < q_seq, other=0)
        seen = seen & (q_segment == tl.load(k_segments + row * k_seq + j, mask=j < k_seq, other=0))
    return seen


@triton.jit
def scores_of(products, q_at, k_at, slope, scale, softcap):
    """Scores in base 2, and the tanh of a soft cap for the gradient (the scores again where there is none)."""
    if softcap is None:
        scores = products * (scale * LOG2_E)
        bent = scores
    else:
        bent = tanh(products * (scale / softcap))
        scores = bent * (softcap * LOG2_E)
    if slope is not None:
        scores -= tl.abs(q_at - k_at) * (slope * LOG2_E)
    return scores, bent


@triton.jit
def _head_slope(slopes, head):
    slope = None if slopes is None else tl.load(slopes + head).to(tl.float32)
    return slope


@triton.jit
def forward(
    q, k, v, out, lse, sinks, slopes,
    q_pos, k_pos, q_segments, k_segments, anchors, order, counts,
    q_seq, k_seq, window, CAUSAL: tl.constexpr,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    heads, mask_rows, scale, softcap,
    GROUPS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program: a block of queries of one head. With a causal mask the last blocks have most to do, and go first."""
    tile, lane = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    batch, head = (lane // heads).to(tl.int64), lane % heads
    row = batch % mask_rows
    k += batch * k_batch + (head // GROUPS) * k_head
    v += batch * v_batch + (head // GROUPS) * v_head
    i = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q_tile = load_rows(q + batch * q_batch + head * q_head, i, q_seq, q_token, D, BLOCK_D)
    q_at, slope = positions_at(q_pos, row, i, q_seq)[:, None], _head_slope(slopes, head)
    line = row * tl.num_programs(0) + tile
    order += line * tl.cdiv(k_seq, BLOCK_K)
    partial, all_tiles = tl.load(counts + 2 * line), tl.load(counts + 2 * line + 1)
    largest, total = tl.full((BLOCK_Q,), LOWEST, tl.float32), tl.zeros((BLOCK_Q,), tl.float32)
    sums = tl.zeros((BLOCK_Q, BLOCK_DV), tl.float32)
    for MASKED in tl.static_range(1, -1, -1):  # pyright: ignore[reportGeneralTypeIssues]
        for step in range(0 if MASKED else partial, partial if MASKED else all_tiles):
            j = tl.load(order + step) * BLOCK_K + tl.arange(0, BLOCK_K)
            keys = load_rows(k, j, k_seq, k_token, D, BLOCK_D)
            k_at = positions_at(k_pos, row, j, k_seq)[None, :]
            products = tl.dot(q_tile, tl.trans(keys), input_precision=PRECISION)
            scores, _ = scores_of(products, q_at, k_at, slope, scale, softcap)
            if MASKED:
                seen = visible(
                    i[:, None], j[None, :], q_at, k_at, q_segments, k_segments, anchors, row,
                    q_seq, k_seq, window, CAUSAL,
                )  # fmt: skip
                scores = tl.where(seen, scores, float("-inf"))
            larger = tl.maximum(largest, tl.max(scores, 1))
            weights, shrink = tl.exp2(scores - larger[:, None]), tl.exp2(largest - larger)
            total, sums = total * shrink + tl.sum(weights, 1), sums * shrink[:, None]
            values = load_rows(v, j, k_seq, v_token, DV, BLOCK_DV)
            sums = tl.dot(weights.to(values.dtype), values, sums, input_precision=PRECISION)
            largest = larger
    if sinks is not None:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
        larger = tl.maximum(largest, sink)
        shrink = tl.exp2(largest - larger)
        total, sums, largest = total * shrink + tl.exp2(sink - larger), sums * shrink[:, None], larger
    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    sums = sums / total[:, None]
    store_rows(out + batch * q_seq * heads * DV + head * DV, sums, i, q_seq, heads * DV, DV, BLOCK_DV)
    statistic = tl.where(nothing, float("inf"), largest + tl.log2(total))
    tl.store(lse + lane.to(tl.int64) * q_seq + i, statistic, mask=i < q_seq)


@triton.jit
def backward_keys(
    q, k, v, d_out, lse, delta, dk, dv, slopes,
    q_pos, k_pos, q_segments, k_segments, anchors, order, counts,
    q_seq, k_seq, window, CAUSAL: tl.constexpr,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    heads, mask_rows, scale, softcap,
    GROUPS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program: a block of keys of one kv head, against the queries of all heads that it serves.

    Tiles are (keys, queries), transposed: P^T and dS^T are then left factors, which tensor cores take from registers.
    """
    tile, lane = tl.program_id(0), tl.program_id(1)
    kv_heads = heads // GROUPS
    batch, kv_head = (lane // kv_heads).to(tl.int64), lane % kv_heads
    row = batch % mask_rows
    j = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    keys = load_rows(k + batch * k_batch + kv_head * k_head, j, k_seq, k_token, D, BLOCK_D)
    values = load_rows(v + batch * v_batch + kv_head * v_head, j, k_seq, v_token, DV, BLOCK_DV)
    k_at = positions_at(k_pos, row, j, k_seq)[:, None]
    line = row * tl.num_programs(0) + tile
    order += line * tl.cdiv(q_seq, BLOCK_Q)
    partial, all_tiles = tl.load(counts + 2 * line), tl.load(counts + 2 * line + 1)
    dk_sums, dv_sums = tl.zeros((BLOCK_K, BLOCK_D), tl.float32), tl.zeros((BLOCK_K, BLOCK_DV), tl.float32)
    for member in range(GROUPS):
        head = kv_head * GROUPS + member
        slope, statistics = _head_slope(slopes, head), (batch * heads + head) * q_seq
        for MASKED in tl.static_range(1, -1, -1):  # pyright: ignore[reportGeneralTypeIssues]
            for step in range(0 if MASKED else partial, partial if MASKED else all_tiles):
                i = tl.load(order + step) * BLOCK_Q + tl.arange(0, BLOCK_Q)
                queries = load_rows(q + batch * q_batch + head * q_head, i, q_seq, q_token, D, BLOCK_D)
                q_at = positions_at(q_pos, row, i, q_seq)[None, :]
                # Beyond the last query, +inf makes the weight zero.
                level = tl.load(lse + statistics + i, mask=i < q_seq, other=float("inf"))
                products = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
                scores, bent = scores_of(products, q_at, k_at, slope, scale, softcap)
                if MASKED:
                    seen = visible(
                        i[None, :], j[:, None], q_at, k_at, q_segments, k_segments, anchors, row,
                        q_seq, k_seq, window, CAUSAL,
                    )  # fmt: skip
                    scores = tl.where(seen, scores, float("-inf"))
                weights = tl.exp2(scores - level[None, :])
                up = load_rows(
                    d_out + batch * q_seq * heads * DV + head * DV, i, q_seq, heads * DV, DV, BLOCK_DV
                )  # fmt: skip
                dv_sums = tl.dot(weights.to(up.dtype), up, dv_sums, input_precision=PRECISION)
                d_weights = tl.dot(values, tl.trans(up), input_precision=PRECISION)
                mean = tl.load(delta + statistics + i, mask=i < q_seq, other=0.0)
                d_scores = weights * (d_weights - mean[None, :])
                if softcap is not None:
                    d_scores *= 1.0 - bent * bent
                dk_sums = tl.dot(d_scores.to(queries.dtype), queries, dk_sums, input_precision=PRECISION)
    store_rows(dk + (batch * k_seq * kv_heads + kv_head) * D, dk_sums * scale, j, k_seq, kv_heads * D, D, BLOCK_D)
    store_rows(dv + (batch * k_seq * kv_heads + kv_head) * DV, dv_sums, j, k_seq, kv_heads * DV, DV, BLOCK_DV)


@triton.jit
def backward_queries(
    q, k, v, d_out, lse, delta, dq, slopes, falls,
    q_pos, k_pos, q_segments, k_segments, anchors, order, counts,
    q_seq, k_seq, window, CAUSAL: tl.constexpr,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    heads, mask_rows, scale, softcap,
    GROUPS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program: a block of queries of one head. `falls` gets its part of the slope's gradient."""
    tile, lane = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    batch, head = (lane // heads).to(tl.int64), lane % heads
    row = batch % mask_rows
    k += batch * k_batch + (head // GROUPS) * k_head
    v += batch * v_batch + (head // GROUPS) * v_head
    i = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    queries = load_rows(q + batch * q_batch + head * q_head, i, q_seq, q_token, D, BLOCK_D)
    up = load_rows(d_out + batch * q_seq * heads * DV + head * DV, i, q_seq, heads * DV, DV, BLOCK_DV)
    level = tl.load(lse + lane.to(tl.int64) * q_seq + i, mask=i < q_seq, other=float("inf"))
    mean = tl.load(delta + lane.to(tl.int64) * q_seq + i, mask=i < q_seq, other=0.0)
    q_at, slope = positions_at(q_pos, row, i, q_seq)[:, None], _head_slope(slopes, head)
    line = row * tl.num_programs(0) + tile
    order += line * tl.cdiv(k_seq, BLOCK_K)
    partial, all_tiles = tl.load(counts + 2 * line), tl.load(counts + 2 * line + 1)
    dq_sums, fall = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32), tl.zeros((BLOCK_Q,), tl.float32)
    for MASKED in tl.static_range(1, -1, -1):  # pyright: ignore[reportGeneralTypeIssues]
        for step in range(0 if MASKED else partial, partial if MASKED else all_tiles):
            j = tl.load(order + step) * BLOCK_K + tl.arange(0, BLOCK_K)
            keys = load_rows(k, j, k_seq, k_token, D, BLOCK_D)
            k_at = positions_at(k_pos, row, j, k_seq)[None, :]
            products = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            scores, bent = scores_of(products, q_at, k_at, slope, scale, softcap)
            if MASKED:
                seen = visible(
                    i[:, None], j[None, :], q_at, k_at, q_segments, k_segments, anchors, row,
                    q_seq, k_seq, window, CAUSAL,
                )  # fmt: skip
                scores = tl.where(seen, scores, float("-inf"))
            weights = tl.exp2(scores - level[:, None])
            values = load_rows(v, j, k_seq, v_token, DV, BLOCK_DV)
            d_scores = weights * (tl.dot(up, tl.trans(values), input_precision=PRECISION) - mean[:, None])
            if slopes is not None:
                fall -= tl.sum(d_scores * tl.abs(q_at - k_at), 1)
            if softcap is not None:
                d_scores *= 1.0 - bent * bent
            dq_sums = tl.dot(d_scores.to(keys.dtype), keys, dq_sums, input_precision=PRECISION)
    store_rows(dq + batch * q_seq * heads * D + head * D, dq_sums * scale, i, q_seq, heads * D, D, BLOCK_D)
    if slopes is not None:
        tl.store(falls + lane.to(tl.int64) * tl.num_programs(0) + tl.program_id(0), tl.sum(fall, 0))
