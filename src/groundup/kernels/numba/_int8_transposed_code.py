"""The machine code of `int8_transposed_product`: A^T B, whose sums go down the columns of both.

    bytes      [strip of 32 columns][block of 256 rows][row / 4][column][4]     those of A are a + 128
    numbers    [strip of 32 columns][block of 256 rows][column]                 scales, and of B where its sums start

First threads round strips of blocks, then each takes pairs of a strip of A and one of B, and goes down their blocks:
sums of a block in registers, whole numbers; sums of blocks in memory, float32. Lanes of a register are columns of B. A
sum starts at -128 times the sum of its column of B, which is what a + 128 adds too much.
"""

from functools import cache
from typing import Any

from llvmlite import ir

from groundup.kernels.int8_product import BLOCK
from groundup.kernels.numba._int8_parts import (
    QUAD,
    add_one,
    inverse_and_scale,
    larger,
    nearest,
    taking,
    wait_for,
)
from groundup.native.emit import (
    F32,
    FLOATS,
    I32,
    I64,
    INTS,
    LANES,
    SHORTS,
    Emitter,
    addresses,
    new_function,
    new_module,
)  # fmt: skip

STRIP = 32
TILE = 8
"""Columns of A whose sums with a strip of B are in registers at once."""
VECTORS = STRIP // LANES
NUMBERS = 4 * STRIP
"""Bytes of a strip's scales, and of its starts, for one block."""

JOB = (
    "a", "a_stride", "a_strips", "b", "b_stride", "b_strips", "blocks", "values", "scales", "starts", "y", "y_stride",
    "next_part", "parts_done", "next_pair",
)  # fmt: skip
COUNTERS = 3
"""The int64 of a job, in order; the last are counters of all threads, zero at first. Strides are in bytes."""


@cache
def work_address() -> int:
    """Where the compiled function `work` is, which takes a job's address."""
    module = new_module("int8_transposed_product")
    _write_work(module, _write_pack(module), _write_pair(module, _write_tile(module)))
    return addresses(module)["work"]


def _write_work(module: ir.Module, pack: ir.Function, pair: ir.Function) -> None:
    """A job: first blocks of strips of both matrices until none is left, then pairs of strips."""
    e, (job,) = new_function(module, "work", 1)
    places = {name: e.plus(job, i, 8) for i, name in enumerate(JOB)}
    f = {name: e.load(place, I64) for name, place in places.items() if name not in JOB[-COUNTERS:]}
    blocks, strips = f["blocks"], e.b.add(f["a_strips"], f["b_strips"])
    parts = e.b.mul(strips, blocks)
    with taking(e, places["next_part"], parts) as part:
        block, strip = e.b.udiv(part, strips), e.b.urem(part, strips)
        of_b = e.b.icmp_unsigned(">=", strip, f["a_strips"])
        first = e.b.select(of_b, e.b.sub(strip, f["a_strips"]), strip)
        stride = e.b.select(of_b, f["b_stride"], f["a_stride"])
        matrix = e.plus(e.b.select(of_b, f["b"], f["a"]), first, 2 * STRIP)
        source = e.b.add(matrix, e.b.mul(stride, e.b.mul(block, I64(BLOCK))))
        place = e.b.add(e.b.mul(strip, blocks), block)
        sign = e.b.select(of_b, I64(0), I64(0x80808080))
        numbers = [e.plus(f[name], place, NUMBERS) for name in ("scales", "starts")]
        e.b.call(pack, [source, stride, sign, e.plus(f["values"], place, BLOCK * STRIP), *numbers])
        add_one(e, places["parts_done"])
    wait_for(e, places["parts_done"], parts)
    with taking(e, places["next_pair"], e.b.mul(f["a_strips"], f["b_strips"])) as number:
        row, column = e.b.udiv(number, f["b_strips"]), e.b.urem(number, f["b_strips"])
        of_a, of_b = e.b.mul(row, blocks), e.b.mul(e.b.add(column, f["a_strips"]), blocks)
        a, b = (e.plus(f["values"], place, BLOCK * STRIP) for place in (of_a, of_b))
        a_scales, b_scales = (e.plus(f["scales"], place, NUMBERS) for place in (of_a, of_b))
        y = e.plus(e.b.add(f["y"], e.b.mul(e.b.mul(row, I64(STRIP)), f["y_stride"])), column, 4 * STRIP)
        starts = e.plus(f["starts"], of_b, NUMBERS)
        e.b.call(pair, [a, b, a_scales, b_scales, starts, blocks, y, f["y_stride"]])
    e.b.ret_void()


def _write_pack(module: ir.Module) -> ir.Function:
    """source, stride, sign, values, scales, starts: a block of a strip of bfloat16 to bytes."""
    e, (source, stride, sign, values, scales, starts) = new_function(module, "pack", 6)
    amax = e.variable(SHORTS)
    e.b.store(ir.Constant(SHORTS, None), amax)
    with e.loop(I64(BLOCK)) as row:
        bits = e.b.and_(e.load(e.b.add(source, e.b.mul(stride, row)), SHORTS), SHORTS([0x7FFF] * STRIP))
        e.b.store(larger(e, bits, e.b.load(amax)), amax)
    inverses, totals = [], [e.variable(INTS) for _ in range(VECTORS)]
    for i, (half, total) in enumerate(zip(_halves(e, e.b.load(amax)), totals, strict=True)):
        inverse, scale = inverse_and_scale(e, half, FLOATS)
        e.store(scale, e.plus(scales, i, 4 * LANES))
        e.b.store(ir.Constant(INTS, None), total)
        inverses.append(inverse)
    signs, ones = e.repeat(e.b.trunc(sign, I32)), INTS([0x01010101] * LANES)
    with e.loop(I64(BLOCK // QUAD)) as quad:
        quads: list[Any] = [ir.Constant(INTS, None)] * VECTORS
        for j in range(QUAD):
            row = e.b.add(e.b.mul(quad, I64(QUAD)), I64(j))
            numbers = _halves(e, e.load(e.b.add(source, e.b.mul(stride, row)), SHORTS))
            for i, (half, inverse) in enumerate(zip(numbers, inverses, strict=True)):
                byte = e.b.and_(nearest(e, half, inverse), INTS([255] * LANES))
                quads[i] = e.b.or_(quads[i], e.b.shl(byte, INTS([8 * j] * LANES)))
        for i, (four, total) in enumerate(zip(quads, totals, strict=True)):
            e.b.store(e.byte_product(e.b.load(total), ones, four), total)
            e.store(e.b.xor(four, signs), e.plus(e.plus(values, quad, QUAD * STRIP), i, QUAD * LANES))
    for i, total in enumerate(totals):
        e.store(e.b.mul(e.b.load(total), INTS([-128] * LANES)), e.plus(starts, i, 4 * LANES))
    e.b.ret_void()
    return e.b.function


def _halves(e: Emitter, shorts: Any) -> list[Any]:
    """32 bfloat16 as two vectors of float32."""
    halves = [e.b.shuffle_vector(shorts, shorts, INTS(list(range(i, i + LANES)))) for i in (0, LANES)]
    return [e.upper_half(half) for half in halves]


def _write_tile(module: ir.Module) -> ir.Function:
    """a, b, a_scales, b_scales, starts, y, y_stride: add a block of 8 columns of A, times a strip of B, to y."""
    e, (a, b, a_scales, b_scales, starts, y, y_stride) = new_function(module, "tile", 7)
    sums = [[e.variable(INTS) for _ in range(VECTORS)] for _ in range(TILE)]
    for i, first in enumerate(e.vectors(starts, INTS, 4 * LANES, VECTORS)):
        for places in sums:
            e.b.store(first, places[i])
    with e.loop(I64(BLOCK // QUAD)) as quad:
        of_b = e.vectors(e.plus(b, quad, QUAD * STRIP), INTS, QUAD * LANES, VECTORS)
        own = e.plus(a, quad, QUAD * STRIP)
        for column, places in enumerate(sums):
            of_a = e.repeat(e.load(e.plus(own, column, QUAD), I32))
            for place, four in zip(places, of_b, strict=True):
                e.b.store(e.byte_product(e.b.load(place), of_a, four), place)
    scales = e.vectors(b_scales, FLOATS, 4 * LANES, VECTORS)
    for column, places in enumerate(sums):
        of_a = e.repeat(e.load(e.plus(a_scales, column, 4), F32))
        target = e.b.add(y, e.b.mul(y_stride, I64(column)))
        for i, (place, of_b) in enumerate(zip(places, scales, strict=True)):
            number = e.b.fmul(e.b.fmul(e.b.sitofp(e.b.load(place), FLOATS), of_b), of_a)
            y_of = e.plus(target, i, 4 * LANES)
            e.store(e.b.fadd(e.load(y_of, FLOATS), number), y_of)
    e.b.ret_void()
    return e.b.function


def _write_pair(module: ir.Module, tile: ir.Function) -> ir.Function:
    """a, b, a_scales, b_scales, starts, blocks, y, y_stride: a strip of A times a strip of B, all their blocks."""
    arguments: Any
    e, arguments = new_function(module, "pair", 8)
    a, b, a_scales, b_scales, starts, blocks, y, y_stride = arguments
    with e.loop(I64(STRIP)) as row:
        for i in range(VECTORS):
            zeros = ir.Constant(FLOATS, [0.0] * LANES)
            e.store(zeros, e.plus(e.b.add(y, e.b.mul(y_stride, row)), i, 4 * LANES))
    with e.loop(blocks) as block:
        a_of, b_of = (e.plus(values, block, BLOCK * STRIP) for values in (a, b))
        of_a, of_b, start = (e.plus(numbers, block, NUMBERS) for numbers in (a_scales, b_scales, starts))
        with e.loop(I64(STRIP // TILE)) as number:
            own, own_scales = e.plus(a_of, number, QUAD * TILE), e.plus(of_a, number, 4 * TILE)
            target = e.b.add(y, e.b.mul(y_stride, e.b.mul(number, I64(TILE))))
            e.b.call(tile, [own, b_of, own_scales, of_b, start, target, y_stride])
    e.b.ret_void()
    return e.b.function
