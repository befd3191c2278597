"""Attention of one query of one head over pages, and what is remembered before it."""

import numpy as np

from groundup.inference.decode_rows import (
    RMS_NORM,
    exponential,
    floats,
    from_bf16,
    halves,
    norm,
    tanh,
    to_bf16,
)
from groundup.inference.decode_team import compiled

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
def remember(values, address, slot, in_bf16):
    """Write the keys, or the values, of all heads of one token to its slot."""
    if in_bf16:
        out = halves(address + 2 * slot * values.size, values.size)
        for i in range(values.size):
            out[i] = to_bf16(values[i])
    else:
        stored = floats(address + 4 * slot * values.size, values.size)
        for i in range(values.size):
            stored[i] = values[i]


@compiled
def _scores(query, keys, stride, in_bf16, table, page_size, first, last, scores, filled):
    """query . key of positions first .. last - 1 into scores[filled:]; stride: numbers from slot to slot."""
    for position in range(first, last):
        at, total = slot_of(table, page_size, position) * stride, np.float32(0)
        if in_bf16:
            half = halves(keys + 2 * at, query.size)
            for i in range(query.size):
                total += query[i] * from_bf16(half[i])
        else:
            key = floats(keys + 4 * at, query.size)
            for i in range(query.size):
                total += query[i] * key[i]
        scores[filled + position - first] = total


@compiled
def _add_values(out, values, stride, in_bf16, table, page_size, first, last, weights, used):
    """out += weight * value of positions first .. last - 1, whose weights are weights[used:]."""
    for position in range(first, last):
        at, weight = slot_of(table, page_size, position) * stride, weights[used + position - first]
        if in_bf16:
            half = halves(values + 2 * at, out.size)
            for i in range(out.size):
                out[i] += weight * from_bf16(half[i])
        else:
            value = floats(values + 4 * at, out.size)
            for i in range(out.size):
                out[i] += weight * value[i]


@compiled
def attend(
    query, keys, values, stride, in_bf16, table, page_size, position, window, sink_tokens, softcap, slope, sink, scores, out
):
    """softmax(query . keys) values over what is visible: the last `window` positions and the first `sink_tokens`.

    The query is scaled. keys, values: addresses of this head in slot 0. softcap 0: none. slope: ALiBi's, 0 without.
    sink: one more score without a value; minus infinity without. scores: room for one per visible position.
    """
    first = max(0, position + 1 - window)
    sinks = min(sink_tokens, first)
    _scores(query, keys, stride, in_bf16, table, page_size, 0, sinks, scores, 0)
    _scores(query, keys, stride, in_bf16, table, page_size, first, position + 1, scores, sinks)
    weights = scores[: sinks + position + 1 - first]
    if softcap > 0:
        for i in range(weights.size):
            weights[i] = softcap * tanh(weights[i] / softcap)
    if slope > 0:
        for i in range(weights.size):
            weights[i] -= slope * np.float32(position - (i if i < sinks else first + i - sinks))
    total = _softmax(weights, sink)
    for i in range(out.size):
        out[i] = np.float32(0)
    _add_values(out, values, stride, in_bf16, table, page_size, 0, sinks, weights, 0)
    _add_values(out, values, stride, in_bf16, table, page_size, first, position + 1, weights, sinks)
    for i in range(out.size):
        out[i] /= total


@compiled
def _softmax(scores, sink):
    """Scores become e^(score - largest); their sum is returned, with the sink's share."""
    largest = sink
    for i in range(scores.size):
        largest = max(largest, scores[i])
    total = exponential(sink - largest) if sink > np.float32(-1e30) else np.float32(0)
    for i in range(scores.size):
        scores[i] = exponential(scores[i] - largest)
        total += scores[i]
    return total
