"""A whole decode step as one compiled function: a list of operations that all threads walk through together.

    embed | round  qkv  remember  attend  round  out+  round  gate*up  round  down+ | ... | gather  round  head

Each operation is a record of `OPERATION`. What it reads and writes is given by address, so that one compilation serves
every model and every format of weights. Rows of activations are float32; `round` gives them the format that the next
product reads, after a norm where one stands there.

Rows are tokens: one of each sequence in decoding, many of one in prefill. A row is computed in the same order whatever
else is in the batch, and whichever thread takes it.
"""

import hashlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from groundup.inference.decode.attend import attend, call_2, call_7, norm_heads, remember, rotate, slot_of
from groundup.inference.decode.operations import (
    ADD,
    ATTEND,
    BF16,
    EMBED,
    FP32,
    GATHER,
    INT8,
    NORM,
    PRIVATE_ROWS,
    PRODUCT,
    REMEMBER,
    ROUND,
)  # fmt: skip
from groundup.inference.decode.rows import activate, floats, norm, round_bf16, round_fp32, round_int16
from groundup.inference.decode.team import FAST_MATH, arrive, call, compiled, is_called, meet, next_part
from groundup.inference.decode.tile import INPUTS, OUTPUTS

TILE = 12  # rows of a tile at most
TURNS = 4  # of each thread in a product
AHEAD_BYTES = 32 << 10


@compiled
def _row(address, width, row):
    return floats(address + 4 * width * row, width)


@compiled
def _embed(op, row, tokens, positions):
    out = _row(op.target, op.target_width, row)
    vector = _row(op.table, op.width, tokens[row])
    for i in range(op.width):
        out[i] = vector[i] * op.scale
    if op.position_table:
        place = _row(op.position_table, op.width, positions[row])
        for i in range(op.width):
            out[i] += place[i]


@compiled
def _norm(op, row, work):
    """target = norm(source), or target += norm(source)."""
    normed, out = work[: op.width], _row(op.target, op.target_width, row)
    norm(op.norm_kind, _row(op.source, op.source_width, row)[: op.width], op.gain, op.norm_bias, op.eps, normed)
    for i in range(op.width):
        out[i] = out[i] + normed[i] if op.mode == ADD else normed[i]


@compiled
def _round(op, row, record, values_bytes, work):
    """One row, normed, in the format of the next product: values, then their scale, then the sums of groups."""
    padded = work[: op.groups * INPUTS]
    norm(
        op.norm_kind,
        _row(op.source, op.source_width, row)[: op.width],
        op.gain,
        op.norm_bias,
        op.eps,
        padded[: op.width],
    )
    padded[op.width :] = np.float32(0)
    if op.format == FP32:
        round_fp32(padded, record)
    elif op.format == BF16:
        round_bf16(padded, record)
    else:
        scale = round_int16(padded, record, record + values_bytes + 4 * OUTPUTS)
        floats(record + values_bytes, 1)[0] = scale


@compiled
def _multiply(op, tiles, block, x, stride, sums, y, rows):
    """Up to 12 rows times a block, by the smallest tile for so many; rows that it does beyond them nobody reads."""
    weights, scales = op.weights + block * op.block_bytes, op.scales + block * op.scale_bytes
    if rows <= 4:
        call_7(tiles[op.format, min(rows - 1, 2)], weights, scales, x, stride, sums, y, op.groups)
        return
    place, half = (3, 4) if rows <= 8 else (4, 6)
    call_7(tiles[op.format, place], weights, scales, x, stride, sums, y, op.groups)
    if op.format >= INT8:  # a tile of half as many rows
        more = half * stride
        call_7(
            tiles[op.format, place], weights, scales, x + more, stride, sums + more, y + 4 * OUTPUTS * half, op.groups
        )


@compiled
def _outputs(y, row):
    """Of one row and block. So many at an address, as compiled code has to know their number."""
    return floats(y + 4 * OUTPUTS * row, OUTPUTS)


@compiled
def _finish(op, values, scale, bias, start, width):
    """Outputs of one row and block: the row's scale, and biases from output `start` on."""
    if op.format >= INT8:
        for i in range(OUTPUTS):
            values[i] *= scale
    if bias:
        biases = floats(bias + 4 * start, width)
        for i in range(width):
            values[i] += biases[i]


@compiled
def _product(op, tiles, block, records, stride, values_bytes, y, rows):
    """All rows times one block of weights (of the gate and of what goes up, where there is a gate).

    y: address of room for the outputs of two tiles.
    """
    start = block * OUTPUTS
    width = min(OUTPUTS, op.outputs - start)
    for first in range(0, rows, TILE):
        count, x = min(TILE, rows - first), records + first * stride
        sums = x + values_bytes + 4 * OUTPUTS
        _multiply(op, tiles, block * (1 + op.gated), x, stride, sums, y, count)
        if op.gated:
            _multiply(op, tiles, block * 2 + 1, x, stride, sums, y + 4 * OUTPUTS * TILE, count)
        for row in range(count):
            values, scale = _outputs(y, row), floats(x + row * stride + values_bytes, 1)[0]
            _finish(op, values, scale, op.bias, start, width)
            activate(values, op.activation)
            if op.gated:
                up = _outputs(y, TILE + row)
                _finish(op, up, scale, op.up_bias, start, width)
                for i in range(OUTPUTS):
                    values[i] *= up[i]
            out = floats(op.target + 4 * (op.target_width * (first + row) + start), width)
            for i in range(width):
                out[i] = out[i] + values[i] if op.mode == ADD else values[i]


@compiled
def _remember(op, row, table, position):
    """Norms and turns queries and keys of a token, scales the queries, and stores keys and values."""
    d_q, d_kv = op.heads * op.d_head, op.kv_heads * op.d_head
    qkv = _row(op.source, op.source_width, row)
    queries, keys, values = qkv[:d_q], qkv[d_q : d_q + d_kv], qkv[d_q + d_kv : d_q + 2 * d_kv]
    if op.q_gain:
        norm_heads(queries, d_q if op.whole_norm else op.d_head, op.q_gain, op.eps)
        norm_heads(keys, d_kv if op.whole_norm else op.d_head, op.k_gain, op.eps)
    if op.half:
        cos, sin = _row(op.cos, op.half, position), _row(op.sin, op.half, position)
        rotate(queries, op.heads, op.d_head, cos, sin, op.half)
        rotate(keys, op.kv_heads, op.d_head, cos, sin, op.half)
    for i in range(d_q):
        queries[i] *= op.scale
    slot = slot_of(table, op.page_size, position)
    remember(keys, op.keys, slot, op.in_bf16)
    remember(values, op.values, slot, op.in_bf16)


@compiled
def _heads_at_once(op, rows, threads):
    """Query heads of a part of attention: all of a row, which reads its pages once and in order, if threads have rows
    enough; else as few as share their keys."""
    return op.heads if rows >= 2 * threads else op.part_heads


@compiled
def _attend(op, part, heads, tables, table_rows, positions, work):
    of_row = op.heads // heads
    row, head = part // of_row, part % of_row * heads
    channels = slice(head * op.d_head, (head + heads) * op.d_head)
    query, out = _row(op.source, op.source_width, row)[channels], _row(op.target, op.target_width, row)[channels]
    attend(op, query, head, heads, tables[table_rows[row]], positions[row], work, out)


@compiled
def _blocks_at_once(op, threads):
    """Blocks of a product that a thread takes at a time: few turns each, or they would wait for the counter."""
    return max(1, ((op.outputs + OUTPUTS - 1) // OUTPUTS + TURNS * threads - 1) // (TURNS * threads))


@compiled
def _parts(op, rows, threads):
    """In how many parts an operation on so many rows is shared out."""
    if op.kind == PRODUCT:
        size = _blocks_at_once(op, threads) * OUTPUTS
        return (op.outputs + size - 1) // size
    return rows * (op.heads // _heads_at_once(op, rows, threads)) if op.kind == ATTEND else rows


@compiled
def _fetch_ahead(op, fetch, thread, threads):
    """Ask for the beginning of this thread's first part of the next product: memory would be idle while it waits."""
    part_bytes = _blocks_at_once(op, threads) * op.block_bytes * (1 + op.gated)
    call_2(fetch, op.weights + thread * part_bytes, min(part_bytes, AHEAD_BYTES))


@compiled
def _walk(
    thread, threads, board, program, tiles, counts, tokens, positions, table_rows, tables, gathered, area, record, kept,
    work_size,
):  # fmt: skip
    """Walk once through `program` as one of `threads`.

    counts: rows, and rows whose logits are wanted (`gathered`). tiles: by format, see `tile`.
    Row i is token tokens[i] at positions[i] of the sequence with page table tables[table_rows[i]]. area: address of
    rounded rows of `record` bytes each, which begin with values of up to `kept` bytes: first those that all
    threads share, then PRIVATE_ROWS for each thread. work_size: numbers that a thread needs for itself.
    """
    work = np.empty(work_size, np.float32)
    y = np.empty((2 * TILE, OUTPUTS), np.float32)
    private_area = area + record * (tokens.size + TILE + thread * PRIVATE_ROWS)
    # Read here, before the first meeting: behind the last one thread 0 may have begun to write the next step's.
    counted = (counts[0], counts[1])
    for number in range(program.size):
        op = program[number]
        rows = counted[op.wanted]
        private = rows <= PRIVATE_ROWS
        records = private_area if private else area
        if rows == 0:
            continue
        if op.kind == ROUND and private:
            for row in range(rows):
                _round(op, row, records + row * record, kept, work)
            continue
        parts = _parts(op, rows, threads)
        part = thread
        while part < parts:
            if op.kind == PRODUCT:
                size, blocks = _blocks_at_once(op, threads), (op.outputs + OUTPUTS - 1) // OUTPUTS
                for block in range(part * size, min(blocks, (part + 1) * size)):
                    _product(op, tiles, block, records, record, kept, y.ctypes.data, rows)
            elif op.kind == ROUND:
                _round(op, part, records + part * record, kept, work)
            elif op.kind == ATTEND:
                _attend(op, part, _heads_at_once(op, rows, threads), tables, table_rows, positions, work)
            elif op.kind == REMEMBER:
                _remember(op, part, tables[table_rows[part]], positions[part])
            elif op.kind == NORM:
                _norm(op, part, work)
            elif op.kind == EMBED:
                _embed(op, part, tokens, positions)
            elif op.kind == GATHER:
                _row(op.target, op.target_width, part)[:] = _row(op.source, op.source_width, gathered[part])
            part = next_part(board, thread, threads)
        arrive(board, thread)
        _fetch_ahead(program[op.next_product], op.fetch, thread, threads)
        meet(board, thread, threads)


def _digest() -> str:
    """Of all files that are compiled into the step: Numba's cache on disk looks at the file of its function only."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _compiled_step(digest: str) -> Any:
    """The step; `digest` is part of the key under which Numba keeps it, since the function has it from outside."""

    def step(thread, threads, board, *others):
        """Walk as in `_walk`; a helper does it again as long as it is called soon after. How many times it did."""
        if not digest:
            return 0
        if thread == 0:
            call(board)
        _walk(thread, threads, board, *others)
        walks = 1
        while thread > 0 and is_called(board, thread):
            _walk(thread, threads, board, *others)
            walks += 1
        return walks

    return njit(cache=True, nogil=True, fastmath=FAST_MATH, error_model="numpy")(inspect.unwrap(step))


step = _compiled_step(_digest())
