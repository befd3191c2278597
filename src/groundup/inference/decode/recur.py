"""Recurrent mixers, token by token: the short convolution, the state of each head, and the gated norm behind it.

The rows of one sequence lie one after another, and whoever takes the first of them goes through all: each head's state
is read once for a token, or once for a prompt's rows in a step.
"""

import math

import numpy as np

from groundup.inference.decode.operations import CHANNEL_DECAY, CORRECTING, FIXED_DECAY, RATE_DECAY
from groundup.inference.decode.rows import RMS_NORM, exponential, floats, norm, row_at, sigmoid
from groundup.inference.decode.team import compiled

TEMPERATURE = 16.0
LEAST_DENOMINATOR = 1e-6
L2_EPS = 1e-6


@compiled
def length_of_run(table_rows, row, rows):
    """How many rows from this one on are of its sequence; 0 if the row before is, too."""
    if row > 0 and table_rows[row - 1] == table_rows[row]:
        return 0
    end = row + 1
    while end < rows and table_rows[end] == table_rows[row]:
        end += 1
    return end - row


@compiled
def kept_state(op, number, size, begins):
    """State `number` of so many numbers; zeros where its sequence begins."""
    state = row_at(op.state, size, number)
    if begins:
        for i in range(size):
            state[i] = np.float32(0)
    return state


@compiled
def _input(op, before, first, place):
    """What the convolution sees: places from 0 on are those before the first row, then the rows themselves."""
    earlier = op.kernel - 1
    if place < earlier:
        return before[place * op.width : (place + 1) * op.width]
    return row_at(op.source, op.source_width, first + place - earlier)[: op.width]


@compiled
def convolve(op, first, count, row_of_state, begins, work):
    """silu of the causal convolution of `count` rows, in place and from the last to the first."""
    width, size = op.width, (op.kernel - 1) * op.width
    before, kept, sums = kept_state(op, row_of_state, size, begins), work[:size], work[size : size + width]
    for i in range(op.kernel - 1):
        kept[i * width : (i + 1) * width] = _input(op, before, first, count + i)
    biases = floats(op.bias, width)
    for row in range(count - 1, -1, -1):
        for i in range(width):
            sums[i] = biases[i]
        for tap in range(op.kernel):
            x, weights = _input(op, before, first, row + tap), row_at(op.weights, width, tap)
            for i in range(width):
                sums[i] += weights[i] * x[i]
        out = _input(op, before, first, row + op.kernel - 1)
        for i in range(width):
            out[i] = sums[i] * sigmoid(sums[i])
    before[:] = kept


@compiled
def _softplus(x):
    return x if x > np.float32(20) else np.float32(math.log1p(math.exp(x)))


@compiled
def _decays(op, head, row, decay):
    """What is left of each channel of a head's key after this token; the step that `RATE_DECAY` takes, else 1."""
    rates, step = floats(op.rates, op.heads), np.float32(1)
    x = row_at(op.second, op.second_width, row)
    if op.decay == CHANNEL_DECAY:
        for i in range(decay.size):
            decay[i] = exponential(-_softplus(-x[head * decay.size + i]) / np.float32(TEMPERATURE))
        return step
    if op.decay == FIXED_DECAY:
        left = rates[head]
    elif op.decay == RATE_DECAY:
        step = _softplus(x[head] + floats(op.rate_bias, op.heads)[head])
        left = exponential(-rates[head] * step)
    else:
        left = exponential(-_softplus(-x[head]) / np.float32(TEMPERATURE))
    for i in range(decay.size):
        decay[i] = left
    return step


@compiled
def _features(op, x, out):
    """Queries or keys of a head: as they are, of length 1 for the delta rule, or positive."""
    square = np.float32(L2_EPS)
    for i in range(x.size):
        square += x[i] * x[i]
    factor = np.float32(1) / np.sqrt(square) if op.rule == CORRECTING else np.float32(1)
    for i in range(x.size):
        out[i] = x[i] * factor
        if op.elu:
            out[i] = x[i] + np.float32(1) if x[i] > 0 else np.float32(math.exp(x[i]))


@compiled
def _correct(state, decay, keys, beta, values, missing, queries, out):
    """state <- decay * state + beta k (v - what the decayed state has under k); out: what it then has under q."""
    for j in range(values.size):
        missing[j] = values[j]
        out[j] = np.float32(0)
    for i in range(keys.size):
        held = state[i * values.size : (i + 1) * values.size]
        for j in range(values.size):
            held[j] *= decay[i]
            missing[j] -= keys[i] * held[j]
    for i in range(keys.size):
        held = state[i * values.size : (i + 1) * values.size]
        for j in range(values.size):
            held[j] += beta * keys[i] * missing[j]
            out[j] += queries[i] * held[j]


@compiled
def _add(state, decay, keys, values, queries, out):
    """state <- decay * state + k v; out: what it then has under q."""
    for j in range(values.size):
        out[j] = np.float32(0)
    for i in range(keys.size):
        held = state[i * values.size : (i + 1) * values.size]
        for j in range(values.size):
            held[j] = decay[i] * held[j] + keys[i] * values[j]
            out[j] += queries[i] * held[j]


@compiled
def recur(op, head, first, count, row_of_state, begins, work):
    """A head's outputs for `count` rows, through its state."""
    d_key, d_value = op.d_head, op.d_value
    width = d_value - op.elu
    state = kept_state(op, row_of_state * op.heads + head, d_key * d_value, begins)
    queries, keys, decay = work[:d_key], work[d_key : 2 * d_key], work[2 * d_key : 3 * d_key]
    values, out = work[3 * d_key : 3 * d_key + d_value], work[3 * d_key + d_value : 3 * d_key + 2 * d_value]
    missing = work[3 * d_key + 2 * d_value : 3 * d_key + 3 * d_value]
    shared, of_head = head // (op.heads // op.kv_heads) * d_key, head * width
    for row in range(first, first + count):
        source, target = row_at(op.source, op.source_width, row), row_at(op.target, op.target_width, row)
        _features(op, source[op.q_at + shared : op.q_at + shared + d_key], queries)
        _features(op, source[op.k_at + shared : op.k_at + shared + d_key], keys)
        for i in range(d_key):
            queries[i] *= op.scale
        step = _decays(op, head, row, decay)
        plain = source[op.v_at + of_head : op.v_at + of_head + width]
        for j in range(width):
            values[j] = plain[j] * step if op.skip else plain[j]
        if op.elu:
            values[width] = np.float32(1)
        if op.rule == CORRECTING:
            _correct(state, decay, keys, sigmoid(source[op.beta_at + head]), values, missing, queries, out)
        else:
            _add(state, decay, keys, values, queries, out)
        share = np.float32(1) / max(out[width], np.float32(LEAST_DENOMINATOR)) if op.elu else np.float32(1)
        past = floats(op.skip, op.heads)[head] if op.skip else np.float32(0)
        for j in range(width):
            target[of_head + j] = out[j] * share + plain[j] * past


@compiled
def gate_row(op, row, work):
    """RMSNorm of each group of a row's channels, and the silu of another row as a gate before or behind it."""
    x, gate = row_at(op.source, op.source_width, row), row_at(op.second, op.second_width, row)
    out, mixed = row_at(op.target, op.target_width, row), work[: op.width]
    for i in range(op.width):
        mixed[i] = x[i] * gate[i] * sigmoid(gate[i]) if op.gate_first else x[i]
    size = op.width // op.norm_groups
    for start in range(0, op.width, size):
        own = mixed[start : start + size]
        norm(RMS_NORM, own, op.gain + 4 * start, 0, op.eps, own)
    for i in range(op.width):
        out[i] = mixed[i] if op.gate_first else mixed[i] * gate[i] * sigmoid(gate[i])
