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

from groundup.inference.decode.attend import (
    attend,
    call_2,
    norm_heads,
    remember,
    rotate,
    slot_of,
    turn_latent,
)
from groundup.inference.decode.operations import (
    ADD,
    ATTEND,
    CONVOLVE,
    EMBED,
    GATE,
    GATHER,
    NORM,
    PRIVATE_ROWS,
    PRODUCT,
    RECUR,
    REMEMBER,
    REMEMBER_LATENT,
    ROUND,
)  # fmt: skip
from groundup.inference.decode.products import TILE, blocks, blocks_at_once, product_block, round_row
from groundup.inference.decode.recur import convolve, gate_row, length_of_run, recur
from groundup.inference.decode.rows import floats, norm, row_at
from groundup.inference.decode.team import FAST_MATH, arrive, call, compiled, is_called, meet, next_part
from groundup.inference.decode.tile import OUTPUTS

AHEAD_BYTES = 32 << 10


@compiled
def _embed(op, row, tokens, positions):
    out = row_at(op.target, op.target_width, row)
    vector = row_at(op.table, op.width, tokens[row])
    for i in range(op.width):
        out[i] = vector[i] * op.scale
    if op.position_table:
        place = row_at(op.position_table, op.width, positions[row])
        for i in range(op.width):
            out[i] += place[i]


@compiled
def _norm(op, row, work):
    """target = norm(source), or target += norm(source)."""
    normed, out = work[: op.width], row_at(op.target, op.target_width, row)
    norm(op.norm_kind, row_at(op.source, op.source_width, row)[: op.width], op.gain, op.norm_bias, op.eps, normed)
    for i in range(op.width):
        out[i] = out[i] + normed[i] if op.mode == ADD else normed[i]


@compiled
def _remember(op, row, table, position):
    """Norms and turns queries and keys of a token, scales the queries, and stores keys and values."""
    d_q, d_kv = op.heads * op.d_head, op.kv_heads * op.d_head
    qkv = row_at(op.source, op.source_width, row)
    queries, keys, values = qkv[:d_q], qkv[d_q : d_q + d_kv], qkv[d_q + d_kv : d_q + 2 * d_kv]
    if op.q_gain:
        norm_heads(queries, d_q if op.whole_norm else op.d_head, op.q_gain, op.eps)
        norm_heads(keys, d_kv if op.whole_norm else op.d_head, op.k_gain, op.eps)
    if op.half:
        cos, sin = row_at(op.cos, op.half, position), row_at(op.sin, op.half, position)
        rotate(queries, op.heads, op.d_head, cos, sin, op.half)
        rotate(keys, op.kv_heads, op.d_head, cos, sin, op.half)
    for i in range(d_q):
        queries[i] *= op.scale
    slot = slot_of(table, op.page_size, position)
    remember(keys, op.keys, slot, op.in_bf16)
    remember(values, op.values, slot, op.in_bf16)


@compiled
def _remember_latent(op, row, table, position):
    """Norms, turns and stores a token's latent and rotary key, and makes its queries ready."""
    latent = floats(op.source + 4 * op.source_width * row, op.d_head + op.d_rope)
    turned = floats(op.target + 4 * op.target_width * row, op.heads * op.d_rope)
    cos, sin = row_at(op.cos, op.half, position), row_at(op.sin, op.half, position)
    turn_latent(op, latent, row_at(op.second, op.second_width, row), turned, cos, sin)
    slot = slot_of(table, op.page_size, position)
    remember(latent[: op.d_head], op.keys, slot, op.in_bf16)
    remember(latent[op.d_head :], op.rope_keys, slot, op.in_bf16)


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
    query, out = row_at(op.source, op.source_width, row)[channels], row_at(op.target, op.target_width, row)[channels]
    rope_query = op.source + 4 * (op.source_width * row + op.heads * op.d_head + head * op.d_rope)
    attend(op, query, rope_query, head, heads, tables[table_rows[row]], positions[row], work, out)


@compiled
def _go_on(op, part, rows, table_rows, positions, work):
    """A convolution or a head's recurrence over the rows of one sequence, if the part is that of its first row."""
    first, head = (part // op.heads, part % op.heads) if op.kind == RECUR else (part, 0)
    count, begins = length_of_run(table_rows, first, rows), positions[first] == 0
    if count == 0:
        return
    if op.kind == RECUR:
        recur(op, head, first, count, table_rows[first], begins, work)
    else:
        convolve(op, first, count, table_rows[first], begins, work)


@compiled
def _parts(op, rows, threads):
    """In how many parts an operation on so many rows is shared out."""
    if op.kind == PRODUCT:
        size = blocks_at_once(op, threads)
        return (blocks(op) + size - 1) // size
    if op.kind == RECUR:
        return rows * op.heads
    return rows * (op.heads // _heads_at_once(op, rows, threads)) if op.kind == ATTEND else rows


@compiled
def _fetch_ahead(op, fetch, thread, threads):
    """Ask for the beginning of this thread's first part of the next product: memory would be idle while it waits."""
    part_bytes = blocks_at_once(op, threads) * op.block_bytes * (1 + op.gated)
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
                round_row(op, row, records + row * record, kept, work)
            continue
        parts = _parts(op, rows, threads)
        part = thread
        while part < parts:
            if op.kind == PRODUCT:
                size = blocks_at_once(op, threads)
                for block in range(part * size, min(blocks(op), (part + 1) * size)):
                    product_block(op, tiles, block, records, record, kept, y.ctypes.data, rows)
            elif op.kind == ROUND:
                round_row(op, part, records + part * record, kept, work)
            elif op.kind == ATTEND:
                _attend(op, part, _heads_at_once(op, rows, threads), tables, table_rows, positions, work)
            elif op.kind == REMEMBER:
                _remember(op, part, tables[table_rows[part]], positions[part])
            elif op.kind == REMEMBER_LATENT:
                _remember_latent(op, part, tables[table_rows[part]], positions[part])
            elif op.kind == CONVOLVE or op.kind == RECUR:
                _go_on(op, part, rows, table_rows, positions, work)
            elif op.kind == GATE:
                gate_row(op, part, work)
            elif op.kind == NORM:
                _norm(op, part, work)
            elif op.kind == EMBED:
                _embed(op, part, tokens, positions)
            elif op.kind == GATHER:
                row_at(op.target, op.target_width, part)[:] = row_at(op.source, op.source_width, gathered[part])
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
        walks, called = 0, True
        while called:
            _walk(thread, threads, board, *others)
            walks += 1
            called = thread > 0 and is_called(board, thread)
        return walks

    return njit(cache=True, nogil=True, fastmath=FAST_MATH, error_model="numpy")(inspect.unwrap(step))


step = _compiled_step(_digest())
