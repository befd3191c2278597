"""Products of all rows with a packed matrix, block by block, and the rounding of rows before them."""

import numpy as np

from groundup.inference.decode.attend import call_7
from groundup.inference.decode.operations import ADD, BF16, FP32, INT4, INT8
from groundup.inference.decode.rows import activate, floats, norm, round_bf16, round_fp32, round_int16, row_at
from groundup.inference.decode.team import compiled
from groundup.inference.decode.tile import INPUTS, OUTPUTS

TILE = 12  # rows of a tile at most
TURNS = 4  # of each thread in a product


@compiled
def round_row(op, row, record, values_bytes, work):
    """One row, normed, in the format of the next product: values, then their scale, then the sums of groups.

    Before matrices on a diagonal each one's inputs are filled up to whole groups for themselves.
    """
    inputs, source = op.groups * INPUTS, row_at(op.source, op.source_width, row)
    padded = work[: op.diagonal * inputs]
    for i in range(op.diagonal):
        own, x = padded[i * inputs : (i + 1) * inputs], source[i * op.source_step : i * op.source_step + op.width]
        norm(op.norm_kind, x, op.gain, op.norm_bias, op.eps, own[: op.width])
        own[op.width :] = np.float32(0)
    if op.format == FP32:
        round_fp32(padded, record)
    elif op.format == BF16:
        round_bf16(padded, record)
    else:
        scale = round_int16(padded, record, record + values_bytes + 4 * OUTPUTS if op.format == INT4 else 0)
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
def product_block(op, tiles, block, records, stride, values_bytes, y, rows):
    """All rows times one block of weights (of the gate and of what goes up, where there is a gate).

    y: address of room for the outputs of two tiles.
    """
    of_matrix = (op.outputs + OUTPUTS - 1) // OUTPUTS
    matrix, start = block // of_matrix, block % of_matrix * OUTPUTS
    width, inputs = min(OUTPUTS, op.outputs - start), matrix * op.groups * INPUTS
    for first in range(0, rows, TILE):
        count, record = min(TILE, rows - first), records + first * stride
        x, sums = record + inputs * (4 if op.format == FP32 else 2), record + values_bytes + 4 * OUTPUTS
        sums += inputs // INPUTS * 4
        _multiply(op, tiles, block * (1 + op.gated), x, stride, sums, y, count)
        if op.gated:
            _multiply(op, tiles, block * 2 + 1, x, stride, sums, y + 4 * OUTPUTS * TILE, count)
        for row in range(count):
            values, scale = _outputs(y, row), floats(record + row * stride + values_bytes, 1)[0]
            _finish(op, values, scale, op.bias, start, width)
            activate(values, op.activation)
            if op.gated:
                up = _outputs(y, TILE + row)
                _finish(op, up, scale, op.up_bias, start, width)
                for i in range(OUTPUTS):
                    values[i] *= up[i]
            place = op.target_width * (first + row) + matrix * op.outputs + start
            out = floats(op.target + 4 * place, width)
            for i in range(width):
                out[i] = out[i] + values[i] if op.mode == ADD else values[i]


@compiled
def blocks(op):
    return op.diagonal * ((op.outputs + OUTPUTS - 1) // OUTPUTS)


@compiled
def blocks_at_once(op, threads):
    """Blocks of a product that a thread takes at a time: few turns each, or they would wait for the counter."""
    return max(1, (blocks(op) + TURNS * threads - 1) // (TURNS * threads))
