"""Attention of one query over pages, and what is remembered before it."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from groundup.inference.decode.rows import (
    RMS_NORM,
    exponential,
    floats,
    halves,
    largest_of,
    norm,
    tanh,
    to_bf16,
)
from groundup.inference.decode.team import compiled, intrinsic

KEYS = 16  # of a group, as in heads


def _caller(arguments: int) -> Any:
    """For compiled code: call the C function of so many int64 at an address."""
    word = ir.IntType(64)

    def generate(context, builder, signature, values):
        kind = ir.FunctionType(ir.VoidType(), [word] * arguments)
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.void(*(types.int64,) * (arguments + 1)), generate


@intrinsic
def call_2(typing, function, a, b):
    return _caller(2)


@intrinsic
def call_6(typing, function, a, b, c, d, e, f):
    return _caller(6)


@intrinsic
def call_7(typing, function, a, b, c, d, e, f, g):
    return _caller(7)


@compiled
def slot_of(table, page_size, position):
    """Where the page store keeps a position of a sequence with this page table."""
    return table[position // page_size] * page_size + position % page_size


@compiled
def rotate(heads, count, d_head, cos, sin, half):
    """Turn the first 2 * half channels of every head, pairs (i, i + half), by one position's angles."""
    for head in range(count):
        start = head * d_head
        for i in range(half):
            a, b = heads[start + i], heads[start + half + i]
            heads[start + i] = a * cos[i] - b * sin[i]
            heads[start + half + i] = b * cos[i] + a * sin[i]


@compiled
def norm_heads(heads, width, gain, eps):
    """RMSNorm of every `width` channels, in place."""
    for start in range(0, heads.size, width):
        own = heads[start : start + width]
        norm(RMS_NORM, own, gain, 0, eps, own)


@compiled
def remember(values, address, place, in_bf16):
    """Write the keys, or the values, of some heads of one token, from number `place` on."""
    if in_bf16:
        out = halves(address + 2 * place, values.size)
        for i in range(values.size):
            out[i] = to_bf16(values[i])
    else:
        stored = floats(address + 4 * place, values.size)
        for i in range(values.size):
            stored[i] = values[i]


@compiled
def turn_latent(op, latent, queries, turned, cos, sin):
    """Norms a token's latent, turns the rotary key behind it, scales and turns its queries.

    queries: each head's channels for the latent, which are scaled in place, and for the rotary key, which go to
    `turned`, head after head.
    """
    norm(RMS_NORM, latent[: op.d_head], op.gain, 0, op.eps, latent[: op.d_head])
    rotate(latent[op.d_head :], 1, op.d_rope, cos, sin, op.half)
    plain = op.source_step - op.d_rope
    for head in range(op.heads):
        own = queries[head * op.source_step : (head + 1) * op.source_step]
        for i in range(plain):
            own[i] *= op.scale
        for i in range(op.d_rope):
            turned[head * op.d_rope + i] = own[plain + i] * op.scale
    rotate(turned, op.heads, op.d_rope, cos, sin, op.half)


@compiled
def _score_range(op, stream, query, head, heads, table, first, last, scores, length, after):
    """Scores of positions first .. last - 1, each at its position; whole groups of 16, so others around them change.

    stream: the function that scores 16 keys, where they are kept, their heads and their channels. query, scores:
    addresses for the first of `heads` heads. All heads read a group, and meanwhile the next one is fetched, which after
    the last is what lies from address `after` on.
    """
    function, kept, kv_heads, d_head = stream
    group, size = op.heads // kv_heads, d_head * (2 if op.in_bf16 else 4)
    stride = kv_heads * size
    keys = kept + slot_of(table, op.page_size, first // KEYS * KEYS) * stride
    for start in range(first // KEYS * KEYS, last, KEYS):
        ahead = kept + slot_of(table, op.page_size, start + KEYS) * stride if start + KEYS < last else after
        for i in range(0, heads, op.part_heads):
            of_head = (head + i) // group * size
            place = scores + 4 * (i * length + start)
            call_6(function, query + 4 * i * d_head, keys + of_head, stride, place, length, ahead + of_head)
        keys = ahead


@compiled
def _value_range(op, head, heads, table, first, last, weights, length, out):
    """out += weight * value of positions first .. last - 1, for each of `heads` heads."""
    group, size = op.heads // op.kv_heads, op.d_head * (2 if op.in_bf16 else 4)
    stride, start = op.kv_heads * size, first
    while start < last:
        following = (start // KEYS + 1) * KEYS
        count, values = min(last, following) - start, op.values + slot_of(table, op.page_size, start) * stride
        ahead = op.values + slot_of(table, op.page_size, following) * stride if following < last else values
        for i in range(0, heads, op.part_heads):
            of_head, of_heads = (head + i) // group * size, weights + 4 * (i * length + start)
            own, out_of = values + of_head, out + 4 * i * op.d_head
            call_7(op.add_values, of_heads, length, own, stride, count, out_of, ahead + of_head)
        start += count


@compiled
def _bend(op, scores, distance, slope):
    """Soft cap and ALiBi on the scores of neighbouring positions, the first of them `distance` behind the query."""
    if op.softcap > 0:
        for i in range(scores.size):
            scores[i] = op.softcap * tanh(scores[i] / op.softcap)
    if slope > 0:
        for i in range(scores.size):
            scores[i] -= slope * np.float32(distance - i)


@compiled
def _exponentials(scores, largest):
    """Each score becomes e^(score - largest); their sum."""
    total = np.float32(0)
    for i in range(scores.size):
        scores[i] = exponential(scores[i] - largest)
        total += scores[i]
    return total


@compiled
def attend(op, query, rope_query, head, heads, table, position, work, out):
    """softmax(query . keys) values, over the last `op.window` positions and the first `op.sink_tokens`.

    For `heads` query heads from `head` on: whole groups of `op.part_heads`. query and out are their float32 channels,
    and queries are scaled. rope_query: address of the queries for the rotary key that all heads of latent attention
    share. work: room for a score per head and position.
    """
    length = work.size // op.heads // KEYS * KEYS
    first, end = max(0, position + 1 - op.window), position + 1
    sinks = min(op.sink_tokens, first)
    scores = work.ctypes.data
    stride = op.kv_heads * op.d_head * (2 if op.in_bf16 else 4)
    values = op.values + slot_of(table, op.page_size, first // KEYS * KEYS) * stride
    if op.rope_keys:
        rope = (op.rope_scores, op.rope_keys, 1, op.d_rope)
        _score_range(op, rope, rope_query, head, heads, table, first, end, scores, length, values)
    keys = (op.scores, op.keys, op.kv_heads, op.d_head)
    _score_range(op, keys, query.ctypes.data, head, heads, table, first, end, scores, length, values)
    if sinks:
        _score_range(op, keys, query.ctypes.data, head, heads, table, 0, sinks, scores, length, values)
    for i in range(heads):
        _softmax(op, head + i, work[i * length : i * length + end], position, first, sinks)
    for i in range(out.size):
        out[i] = np.float32(0)
    _value_range(op, head, heads, table, 0, sinks, scores, length, out.ctypes.data)
    _value_range(op, head, heads, table, first, end, scores, length, out.ctypes.data)


@compiled
def _softmax(op, head, row, position, first, sinks):
    """The scores of one head become weights; what is between the first `sinks` and `first` is not read."""
    slope = floats(op.slopes, op.heads)[head] if op.slopes else np.float32(0)
    sink = floats(op.sinks, op.heads)[head] if op.sinks else np.float32(-3e38)
    near, far = row[first:], row[:sinks]
    _bend(op, near, position - first, slope)
    _bend(op, far, position, slope)
    largest = largest_of(far, largest_of(near, sink))  # NaN stays in the scores themselves
    total = _exponentials(near, largest) + _exponentials(far, largest)
    if op.sinks:
        total += exponential(sink - largest)
    share = np.float32(1) / total
    for i in range(near.size):
        near[i] *= share
    for i in range(far.size):
        far[i] *= share
