"""The machine code of `int8_product`: loops over registers, for processors that multiply bytes.

    bytes of X     [tile of 12 rows][inner / 4][row][4]     x + 128, as the instruction wants one side without a sign
    bytes of W     [block of 32 outputs][inner / 4][output][4]

Lanes of a register are outputs. A sum starts at -128 times the sum of its output's weights, which is what x + 128 adds
too much: so sums are exact, and in any order the same.
"""

from functools import cache
from typing import Any

from llvmlite import ir

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
    HALVES,
    I8,
    I32,
    I64,
    INTS,
    LANES,
    PAIRS,
    SHORTS,
    Emitter,
    addresses,
    has_bf16_products,
    new_function,
    new_module,
)  # fmt: skip

ROWS, OUTPUTS = 12, 32
VECTORS = OUTPUTS // LANES
BYTES16, QUADS = ir.VectorType(I8, LANES), ir.VectorType(I32, QUAD)


@cache
def work_address() -> int:
    """Where the compiled function `work` is, which takes a job's address."""
    module = new_module("int8_product")
    parts = {
        "quantize": _write_quantize(module),
        "pack_rows": _write_pack_rows(module),
        "pack_columns": _write_pack_columns(module),
        "multiply": _write_multiply(module, _write_tile(module)),
    }
    _write_work(module, parts)
    return addresses(module)["work"]


JOB = (
    "x", "rows", "inner", "outer", "matrix", "row_stride", "column_stride", "by_column", "weights", "scales", "start",
    "y", "chunk", "values", "row_scales", "threads", "next_block", "blocks_done", "next_chunk",
)  # fmt: skip
COUNTERS = 4
"""The int64 of a job, in order; the last are counters of all threads, zero at first."""


def _write_work(module: ir.Module, parts: dict[str, ir.Function]) -> None:
    """A job: first blocks of the matrix until none is left, then chunks of rows."""
    e, (job,) = new_function(module, "work", 1)
    places = {name: e.plus(job, i, 8) for i, name in enumerate(JOB)}
    f = {name: e.load(place, I64) for name, place in places.items() if name not in JOB[-COUNTERS:]}
    thread = add_one(e, places["threads"])
    values = e.b.add(f["values"], e.b.mul(thread, e.b.mul(f["chunk"], f["inner"])))
    row_scales = e.b.add(f["row_scales"], e.b.mul(thread, e.b.mul(f["chunk"], I64(4))))
    with taking(e, places["next_block"], e.b.udiv(f["outer"], I64(OUTPUTS))) as block:
        first = e.b.mul(block, I64(OUTPUTS))
        source = e.b.add(f["matrix"], e.b.mul(first, f["row_stride"]))
        packed = [e.b.add(f["weights"], e.b.mul(first, f["inner"]))]
        packed += [e.plus(f[name], first, 4) for name in ("scales", "start")]
        with e.b.if_else(e.b.icmp_signed("!=", f["by_column"], I64(0))) as (columns, rows):
            with columns:
                e.b.call(parts["pack_columns"], [source, f["column_stride"], f["inner"], *packed])
            with rows:
                e.b.call(parts["pack_rows"], [source, f["row_stride"], f["inner"], *packed])
        add_one(e, places["blocks_done"])
    wait_for(e, places["blocks_done"], e.b.udiv(f["outer"], I64(OUTPUTS)))
    chunks = e.b.udiv(e.b.sub(e.b.add(f["rows"], f["chunk"]), I64(1)), f["chunk"])
    with taking(e, places["next_chunk"], chunks) as chunk:
        first = e.b.mul(chunk, f["chunk"])
        left = e.b.sub(f["rows"], first)
        count = e.b.select(e.b.icmp_signed("<", left, f["chunk"]), left, f["chunk"])
        source = e.b.add(f["x"], e.b.mul(first, e.b.mul(f["inner"], I64(2))))
        e.b.call(parts["quantize"], [source, count, f["inner"], values, row_scales])
        tiles = e.b.udiv(e.b.add(count, I64(ROWS - 1)), I64(ROWS))
        y = e.b.add(f["y"], e.b.mul(first, e.b.mul(f["outer"], I64(2))))
        of_matrix = [f[name] for name in ("weights", "scales", "start", "outer")]
        e.b.call(parts["multiply"], [values, row_scales, tiles, f["inner"], *of_matrix, y])
    e.b.ret_void()


def _write_quantize(module: ir.Module) -> ir.Function:
    """x, rows, inner, values, scales: rows of bfloat16 to tiles of bytes."""
    e, (x, rows, inner, values, scales) = new_function(module, "quantize", 5)
    with e.loop(rows) as row:
        source = e.b.add(x, e.b.mul(row, e.b.mul(inner, I64(2))))
        amax = _amax_of_halves(e, source, e.b.udiv(inner, I64(2 * LANES)))
        inverse, scale = inverse_and_scale(e, amax)
        e.store(scale, e.plus(scales, row, 4))
        tile, lane = e.b.udiv(row, I64(ROWS)), e.b.urem(row, I64(ROWS))
        target = e.plus(e.b.add(values, e.b.mul(tile, e.b.mul(inner, I64(ROWS)))), lane, QUAD)
        many = e.repeat(inverse)
        with e.loop(e.b.udiv(inner, I64(LANES))) as part:
            x16 = e.upper_half(e.load(e.plus(source, part, 2 * LANES), HALVES))
            whole = e.b.xor(nearest(e, x16, many), INTS([128] * LANES))
            _store_quads(e, whole, e.plus(target, part, LANES * ROWS), ROWS * QUAD)
    e.b.ret_void()
    return e.b.function


def _write_tile(module: ir.Module) -> ir.Function:
    """x, row_scales, inner, weights, scales, start, y, y_stride: 12 rows times a block of 32 outputs."""
    e, (x, row_scales, inner, weights, scales, start, y, y_stride) = new_function(module, "tile", 8)
    sums = [[e.variable(INTS) for _ in range(VECTORS)] for _ in range(ROWS)]
    for i, first in enumerate(e.vectors(start, INTS, 4 * LANES, VECTORS)):
        for row in sums:
            e.b.store(first, row[i])
    with e.loop(e.b.udiv(inner, I64(QUAD))) as quad:
        outputs = e.vectors(e.plus(weights, quad, QUAD * OUTPUTS), INTS, QUAD * LANES, VECTORS)
        own = e.plus(x, quad, QUAD * ROWS)
        for row, places in enumerate(sums):
            bytes_of_x = e.repeat(e.load(e.plus(own, row, QUAD), I32))
            for place, output in zip(places, outputs, strict=True):
                e.b.store(e.byte_product(e.b.load(place), bytes_of_x, output), place)
    of_outputs = e.vectors(scales, FLOATS, 4 * LANES, VECTORS)
    for row, places in enumerate(sums):
        of_row = e.repeat(e.load(e.plus(row_scales, row, 4), F32))
        numbers = [
            e.b.fmul(e.b.fmul(e.b.sitofp(e.b.load(place), FLOATS), of_output), of_row)
            for place, of_output in zip(places, of_outputs, strict=True)
        ]
        e.store(_to_bfloat16(e, *numbers), e.b.add(y, e.b.mul(y_stride, I64(row))))
    e.b.ret_void()
    return e.b.function


def _write_multiply(module: ir.Module, tile: ir.Function) -> ir.Function:
    """x, row_scales, tiles, inner, weights, scales, start, outer, y: all tiles times all blocks."""
    arguments: Any
    e, arguments = new_function(module, "multiply", 9)
    x, row_scales, tiles, inner, weights, scales, start, outer, y = arguments
    stride = e.b.mul(outer, I64(2))
    with e.loop(e.b.udiv(outer, I64(OUTPUTS))) as block:
        weights_of = e.b.add(weights, e.b.mul(block, e.b.mul(inner, I64(OUTPUTS))))
        scales_of, start_of = e.plus(scales, block, 4 * OUTPUTS), e.plus(start, block, 4 * OUTPUTS)
        with e.loop(tiles) as number:
            x_of = e.b.add(x, e.b.mul(number, e.b.mul(inner, I64(ROWS))))
            y_of = e.plus(e.b.add(y, e.b.mul(number, e.b.mul(stride, I64(ROWS)))), block, 2 * OUTPUTS)
            row_scales_of = e.plus(row_scales, number, 4 * ROWS)
            e.b.call(tile, [x_of, row_scales_of, inner, weights_of, scales_of, start_of, y_of, stride])
    e.b.ret_void()
    return e.b.function


def _write_pack_rows(module: ir.Module) -> ir.Function:
    """source, stride, inner, values, scales, start: 32 rows of float32, in memory one after the other, to a block."""
    e, (source, stride, inner, values, scales, start) = new_function(module, "pack_rows", 6)
    parts = e.b.udiv(inner, I64(LANES))
    with e.loop(I64(OUTPUTS)) as row:
        own = e.b.add(source, e.b.mul(stride, row))
        largest, total = e.variable(INTS), e.variable(INTS)
        e.b.store(ir.Constant(INTS, None), largest)
        e.b.store(ir.Constant(INTS, None), total)
        with e.loop(parts) as part:
            bits = e.b.and_(e.load(e.plus(own, part, 4 * LANES), INTS), INTS([0x7FFFFFFF] * LANES))
            e.b.store(larger(e, bits, e.b.load(largest)), largest)
        amax = e.b.bitcast(_reduced(e, "umax", e.b.load(largest)), F32)
        inverse, scale = inverse_and_scale(e, amax)
        many = e.repeat(inverse)
        with e.loop(parts) as part:
            whole = nearest(e, e.load(e.plus(own, part, 4 * LANES), FLOATS), many)
            e.b.store(e.b.add(e.b.load(total), _signed(e, whole)), total)
            place = e.plus(e.plus(values, row, QUAD), part, LANES * OUTPUTS)
            _store_quads(e, whole, place, QUAD * OUTPUTS)
        e.store(scale, e.plus(scales, row, 4))
        e.store(e.b.mul(_reduced(e, "add", e.b.load(total)), I32(-128)), e.plus(start, row, 4))
    e.b.ret_void()
    return e.b.function


def _write_pack_columns(module: ir.Module) -> ir.Function:
    """The same where the 32 outputs lie beside each other: stride is from one input to the next."""
    e, (source, stride, inner, values, scales, start) = new_function(module, "pack_columns", 6)
    with e.loop(I64(VECTORS)) as i:
        own = e.plus(source, i, 4 * LANES)
        largest, total = e.variable(INTS), e.variable(INTS)
        e.b.store(ir.Constant(INTS, None), largest)
        e.b.store(ir.Constant(INTS, None), total)
        with e.loop(inner) as row:
            bits = e.b.and_(e.load(e.b.add(own, e.b.mul(stride, row)), INTS), INTS([0x7FFFFFFF] * LANES))
            e.b.store(larger(e, bits, e.b.load(largest)), largest)
        inverse, scale = inverse_and_scale(e, e.b.bitcast(e.b.load(largest), FLOATS), FLOATS)
        with e.loop(e.b.udiv(inner, I64(QUAD))) as quad:
            together: Any = ir.Constant(INTS, None)
            for j in range(QUAD):
                place = e.b.add(own, e.b.mul(stride, e.b.add(e.b.mul(quad, I64(QUAD)), I64(j))))
                whole = nearest(e, e.load(place, FLOATS), inverse)
                e.b.store(e.b.add(e.b.load(total), _signed(e, whole)), total)
                byte = e.b.and_(whole, INTS([255] * LANES))
                together = e.b.or_(together, e.b.shl(byte, INTS([8 * j] * LANES)))
            e.store(together, e.plus(e.plus(values, i, QUAD * LANES), quad, QUAD * OUTPUTS))
        e.store(scale, e.plus(scales, i, 4 * LANES))
        e.store(e.b.mul(e.b.load(total), INTS([-128] * LANES)), e.plus(start, i, 4 * LANES))
    e.b.ret_void()
    return e.b.function


def _amax_of_halves(e: Emitter, source: Any, parts: Any) -> Any:
    """The largest magnitude among bfloat16, as float32. Without signs they are in the order of their bits; NaN last."""
    largest = e.variable(SHORTS)
    e.b.store(ir.Constant(SHORTS, None), largest)
    with e.loop(parts) as part:
        bits = e.b.and_(e.load(e.plus(source, part, 4 * LANES), SHORTS), SHORTS([0x7FFF] * 2 * LANES))
        e.b.store(larger(e, bits, e.b.load(largest)), largest)
    bits = e.b.zext(_reduced(e, "umax", e.b.load(largest)), I32)
    return e.b.bitcast(e.b.shl(bits, I32(16)), F32)


def _signed(e: Emitter, whole: Any) -> Any:
    """The integers of `nearest` by themselves."""
    return e.b.ashr(e.b.shl(whole, INTS([24] * LANES)), INTS([24] * LANES))


def _store_quads(e: Emitter, whole: Any, place: Any, stride: int) -> None:
    """The low bytes of 16 integers, four to a place, `stride` bytes from one place to the next."""
    quads = e.b.bitcast(e.b.trunc(whole, BYTES16), QUADS)
    for i in range(LANES // QUAD):
        e.store(e.b.extract_element(quads, I32(i)), e.plus(place, i, stride))


def _reduced(e: Emitter, how: str, vector: Any) -> Any:
    kind = vector.type
    name = f"llvm.vector.reduce.{how}.v{kind.count}i{kind.element.width}"
    return e.call(name, ir.FunctionType(kind.element, [kind]), vector)


def _to_bfloat16(e: Emitter, lower: Any, upper: Any) -> Any:
    """32 numbers rounded to the nearest, ties to even."""
    if has_bf16_products():
        kind = ir.FunctionType(PAIRS, [FLOATS, FLOATS])
        return e.b.bitcast(e.call("llvm.x86.avx512bf16.cvtne2ps2bf16.512", kind, upper, lower), SHORTS)
    return e.b.shuffle_vector(
        _upper_rounded(e, lower), _upper_rounded(e, upper), ir.VectorType(I32, 2 * LANES)(list(range(2 * LANES)))
    )


def _upper_rounded(e: Emitter, numbers: Any) -> Any:
    bits = e.b.bitcast(numbers, INTS)
    odd = e.b.and_(e.b.lshr(bits, INTS([16] * LANES)), INTS([1] * LANES))
    return e.b.trunc(e.b.lshr(e.b.add(e.b.add(bits, INTS([0x7FFF] * LANES)), odd), INTS([16] * LANES)), HALVES)
