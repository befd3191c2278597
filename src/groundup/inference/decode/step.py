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
from numba import carray, from_dtype, njit  # pyright: ignore[reportPrivateImportUsage]

from groundup.inference.decode.attend import (
    attend,
    call_2,
    norm_heads,
    remember,
    rotate,
    slot_of,
    turn_latent,
)
from groundup.inference.decode.largest import choose_pieces, search_piece
from groundup.inference.decode.operations import (
    ADD,
    ATTEND,
    CONVOLVE,
    EMBED,
    GATE,
    GATHER,
    LARGEST,
    NORM,
    OPERATION,
    PIECES,
    PRIVATE_ROWS,
    PRODUCT,
    RECUR,
    REMEMBER,
    REMEMBER_LATENT,
    ROUND,
    STEP,
)  # fmt: skip
from groundup.inference.decode.products import TILE, blocks, blocks_at_once, product_block, round_row
from groundup.inference.decode.recur import convolve, gate_row, length_of_run, recur
from groundup.inference.decode.rows import floats, integers, norm, pointer_to, row_at, table
from groundup.inference.decode.team import FAST_MATH, LINE, OWN, arrive, call, compiled, is_called, meet, next_part
from groundup.inference.decode.tile import OUTPUTS

AHEAD_BYTES = 32 << 10
_step_at, _operations_at = pointer_to(from_dtype(STEP)), pointer_to(from_dtype(OPERATION))


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
def _remember(op, row, head, heads, table, position):
    """Norms and turns queries and keys of `heads` query heads of a token from `head` on, whole groups, scales the
    queries, and stores keys and values."""
    group, d_head = op.heads // op.kv_heads, op.d_head
    d_q, d_kv, first, count = op.heads * d_head, op.kv_heads * d_head, head // group * d_head, heads // group * d_head
    qkv = row_at(op.source, op.source_width, row)
    queries = qkv[head * d_head : (head + heads) * d_head]
    keys, values = qkv[d_q + first : d_q + first + count], qkv[d_q + d_kv + first : d_q + d_kv + first + count]
    if op.q_gain:
        norm_heads(queries, d_q if op.whole_norm else d_head, op.q_gain, op.eps)
        norm_heads(keys, d_kv if op.whole_norm else d_head, op.k_gain, op.eps)
    if op.half:
        cos, sin = row_at(op.cos, op.half, position), row_at(op.sin, op.half, position)
        rotate(queries, heads, d_head, cos, sin, op.half)
        rotate(keys, heads // group, d_head, cos, sin, op.half)
    for i in range(queries.size):
        queries[i] *= op.scale
    place = slot_of(table, op.page_size, position) * d_kv + first
    remember(keys, op.keys, place, op.in_bf16)
    remember(values, op.values, place, op.in_bf16)


@compiled
def _remember_latent(op, row, table, position):
    """Norms, turns and stores a token's latent and rotary key, and makes its queries ready."""
    latent = floats(op.source + 4 * op.source_width * row, op.d_head + op.d_rope)
    turned = floats(op.target + 4 * op.target_width * row, op.heads * op.d_rope)
    cos, sin = row_at(op.cos, op.half, position), row_at(op.sin, op.half, position)
    turn_latent(op, latent, row_at(op.second, op.second_width, row), turned, cos, sin)
    slot = slot_of(table, op.page_size, position)
    remember(latent[: op.d_head], op.keys, slot * op.d_head, op.in_bf16)
    remember(latent[op.d_head :], op.rope_keys, slot * op.d_rope, op.in_bf16)


@compiled
def _heads_at_once(op, rows, threads):
    """Query heads of a part of attention: all of a row, which reads its pages once and in order, if threads have rows
    enough; else as few as share their keys."""
    return op.heads if rows >= 2 * threads else op.part_heads


@compiled
def _attend(op, part, heads, tables, table_rows, positions, work, is_apart):
    of_row = op.heads // heads
    row, head = part // of_row, part % of_row * heads
    if op.remembers and is_apart:
        _remember(op, row, head, heads, tables[table_rows[row]], positions[row])
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
    if op.kind == LARGEST:
        return rows * PIECES
    return rows * (op.heads // _heads_at_once(op, rows, threads)) if op.kind == ATTEND else rows


@compiled
def _fetch_ahead(op, fetch, thread, threads):
    """Ask for the beginning of this thread's first part of the next product: memory would be idle while it waits."""
    part_bytes = blocks_at_once(op, threads) * op.block_bytes * (1 + op.gated)
    call_2(fetch, op.weights + thread * part_bytes, min(part_bytes, AHEAD_BYTES))


@compiled
def _walk(thread, address):
    """Walk once through the operations as one of the threads of a step, whose record lies at an address: see STEP."""
    # All of it is read before the first meeting: behind the last one thread 0 may have begun to write the next step's.
    given = carray(_step_at(address), (1,))[0]
    threads, area, record, kept = given.threads, given.area, given.record_bytes, given.values_bytes
    board = integers(given.board, OWN + LINE * threads)
    program = carray(_operations_at(given.operations), (given.count,))
    tiles = table(given.tiles, given.tile_formats, given.tile_sizes)
    tables = table(given.tables, given.tables_rows, given.tables_width)
    tokens, positions = integers(given.tokens, given.rows), integers(given.positions, given.rows)
    table_rows, gathered = integers(given.table_rows, given.rows), integers(given.gathered, given.wanted)
    found = table(given.found, given.most_rows, PIECES)
    work = floats(given.work + 4 * given.work_size * thread, given.work_size)
    y = np.empty((2 * TILE, OUTPUTS), np.float32)
    private_area = area + record * (given.most_rows + TILE + thread * PRIVATE_ROWS)
    counted, is_apart = (given.rows, given.wanted, given.searched), given.is_apart != 0
    for number in range(program.size):
        op = program[number]
        rows = counted[op.wanted]
        private = rows <= PRIVATE_ROWS
        records = private_area if private else area
        if rows == 0 or (op.kind == REMEMBER and op.remembers and is_apart):
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
                _attend(op, part, _heads_at_once(op, rows, threads), tables, table_rows, positions, work, is_apart)
            elif op.kind == REMEMBER:
                _remember(op, part, 0, op.heads, tables[table_rows[part]], positions[part])
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
            elif op.kind == LARGEST:
                search_piece(op, part, found)
            elif op.kind == GATHER:
                row_at(op.target, op.target_width, part)[:] = row_at(op.source, op.source_width, gathered[part])
            part = next_part(board, thread, threads)
        arrive(board, thread)
        _fetch_ahead(program[op.next_product], op.fetch, thread, threads)
        meet(board, thread, threads)
    if thread == 0:
        choose_pieces(program[program.size - 1], counted[2], found)


def _digest() -> str:
    """Of all files that are compiled into the step: Numba's cache on disk looks at the file of its function only."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _compiled_step(digest: str) -> Any:
    """The step; `digest` is part of the key under which Numba keeps it, since the function has it from outside."""

    def step(thread, address):
        """Walk as in `_walk`; a helper does it again as long as it is called soon after. How many times it did."""
        if not digest:
            return 0
        given = carray(_step_at(address), (1,))[0]
        board = integers(given.board, OWN + LINE * given.threads)
        if thread == 0:
            call(board)
        walks, called = 0, True
        while called:
            _walk(thread, address)
            walks += 1
            called = thread > 0 and is_called(board, thread)
        return walks

    return njit(cache=True, nogil=True, fastmath=FAST_MATH, error_model="numpy")(inspect.unwrap(step))


step = _compiled_step(_digest())
