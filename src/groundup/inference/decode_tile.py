"""The inner product of decoding: 32 outputs of a matrix times up to 12 rows, in vector registers.

A matrix lies in blocks of 32 outputs, and a block in the order in which it is read: two neighbouring inputs of all its
outputs, then the next two. Lanes of a register are outputs, so nothing is ever summed across lanes.

    a block          outputs 0 .. 15             outputs 16 .. 31
    inputs 0, 1      w00 w01 w10 w11 ...         ...                   one register each
    inputs 2, 3      w02 w03 w12 w13 ...         ...
                       *   *   *   *
    a row            x0  x1  x0  x1 ...                                one pair, repeated over the register

A pair of weights is read once for all rows. Every output adds up its products in the order of its inputs, whatever the
number of rows: so what a row gets never depends on its neighbours, bit for bit.

Numba has no vectors, so the loops are written in LLVM's language, which is compiled for any processor. One
instruction has no portable name, the product of bfloat16 pairs; where a processor lacks it, pairs are widened.

`INPUTS` inputs make a group; rows and matrices are padded with zeros to whole groups. What stands in memory per group:

    fp32   32 x 32 float32 (no pairs), rows of float32
    bf16   16 x 32 pairs of bfloat16, rows of bfloat16; products are exact and sums are float32
    int8   16 x 32 pairs of int8 and 32 scales, rows of int16; sums of a group are exact
    int4   8 x 32 bytes, each one value of pair 2i (lower half) and one of pair 2i + 1, 32 scales and 32 minima:
           value = scale * q + minimum
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from groundup.tokenizer.fast.compiling import target_machine
from groundup.tokenizer.fast.processor import processor_features

OUTPUTS, INPUTS, LANES = 32, 32, 16
VECTORS = OUTPUTS // LANES
SIZES = {"fp32": (1, 2, 4, 8, 12), "bf16": (1, 2, 4, 8, 12), "int8": (1, 2, 4, 4, 6), "int4": (1, 2, 4, 4, 6)}
"""Rows of each tile of a format, so that its sums fit in 32 registers beside the weights. Integers need two sums per
output, of the group and of all; their tiles run twice for the last two sizes, 8 and 12."""


class _BFloat(ir.Type):
    """LLVM's bfloat16, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


F32, I8, I16, I32, I64 = ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
FLOATS, INTS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
BYTES, SHORTS = ir.VectorType(I8, 2 * LANES), ir.VectorType(I16, 2 * LANES)
HALVES, PAIRS = ir.VectorType(I16, LANES), ir.VectorType(_BFloat(), 2 * LANES)


def has_bf16_products() -> bool:
    """Whether this processor multiplies pairs of bfloat16, as it says of itself."""
    return bool(processor_features().get("avx512bf16", False))


class Emitter:
    """The words in which a tile is written: LLVM's, for one function."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.b = builder

    def plus(self, address: Any, index: Any, size: int) -> Any:
        """address + index * size bytes; the index is a number of the program or of this file."""
        index = I64(index) if isinstance(index, int) else index
        return self.b.add(address, self.b.mul(index, I64(size)))

    def load(self, address: Any, kind: ir.Type) -> Any:
        return self.b.load(self.b.inttoptr(address, kind.as_pointer()), align=1)

    def store(self, value: Any, address: Any) -> None:
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()), align=1)

    def vectors(self, address: Any, kind: ir.Type, size: int) -> list[Any]:
        """What lies from an address on: one vector of `size` bytes for each 16 outputs."""
        return [self.load(self.plus(address, i, size), kind) for i in range(VECTORS)]

    def repeat(self, scalar: Any) -> Any:
        """A vector of 16 times the same."""
        nothing = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
        first = self.b.insert_element(nothing, scalar, I32(0))
        return self.b.shuffle_vector(first, nothing, INTS([0] * LANES))

    def variable(self, kind: ir.Type) -> Any:
        """A place for a value, zero at first; LLVM makes a register of it."""
        with self.b.goto_entry_block():
            place = self.b.alloca(kind)
        self.b.store(ir.Constant(kind, None), place)
        return place

    @contextmanager
    def loop(self, count: Any) -> Iterator[Any]:
        """Do what is written inside for each number below count, which is at least 1."""
        before, body = self.b.block, self.b.append_basic_block()
        self.b.branch(body)
        self.b.position_at_end(body)
        number = self.b.phi(I64)
        number.add_incoming(I64(0), before)
        yield number
        following = self.b.add(number, I64(1))
        number.add_incoming(following, self.b.block)
        after = self.b.append_basic_block()
        self.b.cbranch(self.b.icmp_signed("<", following, count), body, after)
        self.b.position_at_end(after)

    def call(self, name: str, kind: ir.FunctionType, *arguments: Any) -> Any:
        """One of LLVM's own functions."""
        known = self.b.module.globals.get(name)
        return self.b.call(known or ir.Function(self.b.module, kind, name), arguments)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self.call(f"llvm.fma.v{LANES}f32", ir.FunctionType(FLOATS, [FLOATS] * 3), a, b, c)

    def upper_half(self, halves: Any) -> Any:
        """bfloat16 in 16 bits as float32, whose upper half it is."""
        return self.b.bitcast(self.b.shl(self.b.zext(halves, INTS), INTS([16] * LANES)), FLOATS)

    def widened(self, pairs: Any) -> tuple[Any, Any]:
        """The lower and the upper bfloat16 of each 32 bits, as float32."""
        lower, upper = self.b.shl(pairs, INTS([16] * LANES)), self.b.and_(pairs, INTS([0xFFFF0000] * LANES))
        return self.b.bitcast(lower, FLOATS), self.b.bitcast(upper, FLOATS)

    def bf16_product(self, total: Any, weights: Any, x: Any) -> Any:
        """total + both products of each pair of bfloat16, given as 32 bits each."""
        if has_bf16_products():
            kind = ir.FunctionType(FLOATS, [FLOATS, PAIRS, PAIRS])
            name = "llvm.x86.avx512bf16.dpbf16ps.512"
            return self.call(name, kind, total, self.b.bitcast(weights, PAIRS), self.b.bitcast(x, PAIRS))
        for weight, value in zip(self.widened(weights), self.widened(x), strict=True):
            total = self.fma(weight, value, total)
        return total

    def int16_product(self, total: Any, weights: Any, x: Any) -> Any:
        """total + both products of each pair of int16. Written out: LLVM knows the instructions for it."""
        wide = ir.VectorType(I32, 2 * LANES)
        products = self.b.mul(self.b.sext(weights, wide), self.b.sext(x, wide))
        nothing = ir.Constant(wide, ir.Undefined)
        even, odd = (self.b.shuffle_vector(products, nothing, INTS(list(range(i, 2 * LANES, 2)))) for i in (0, 1))
        return self.b.add(total, self.b.add(even, odd))


class Tile:
    """One function: `weights`, ... are its arguments, see `tiles`; `totals[row][i]` sums outputs 16 i to 16 i + 15."""

    def __init__(self, module: ir.Module, name: str, rows: int) -> None:
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 7), name)
        self.e = Emitter(ir.IRBuilder(function.append_basic_block()))
        self.weights, self.scales, self.x, self.stride, self.sums, self.y, self.groups = function.args
        self.rows = rows
        self.totals = self._sums(FLOATS)

    def _sums(self, kind: ir.Type) -> list[list[Any]]:
        return [[self.e.variable(kind) for _ in range(VECTORS)] for _ in range(self.rows)]

    def _repeated(self, address: Any, kind: ir.Type) -> Iterator[Any]:
        """What each row has at an address of the first row, over a vector."""
        for row in range(self.rows):
            own = self.e.b.add(address, self.e.b.mul(self.stride, I64(row)))
            yield self.e.repeat(self.e.load(own, kind))

    def finish(self) -> None:
        for row, totals in enumerate(self.totals):
            for i, total in enumerate(totals):
                self.e.store(self.e.b.load(total), self.e.plus(self.y, row * VECTORS + i, 4 * LANES))
        self.e.b.ret_void()

    def fp32(self) -> None:
        e = self.e
        with e.loop(e.b.mul(self.groups, I64(INPUTS))) as step:
            weights = e.vectors(e.plus(self.weights, step, 4 * OUTPUTS), FLOATS, 4 * LANES)
            for x, totals in zip(self._repeated(e.plus(self.x, step, 4), F32), self.totals, strict=True):
                for weight, total in zip(weights, totals, strict=True):
                    e.b.store(e.fma(weight, x, e.b.load(total)), total)

    def bf16(self) -> None:
        e = self.e
        with e.loop(e.b.mul(self.groups, I64(INPUTS // 2))) as step:
            weights = e.vectors(e.plus(self.weights, step, 4 * OUTPUTS), INTS, 4 * LANES)
            for x, totals in zip(self._repeated(e.plus(self.x, step, 4), I32), self.totals, strict=True):
                for weight, total in zip(weights, totals, strict=True):
                    e.b.store(e.bf16_product(e.b.load(total), weight, x), total)

    def int8(self) -> None:
        e, partial = self.e, self._sums(INTS)
        with e.loop(self.groups) as group:
            self._clear(partial)
            with e.loop(I64(INPUTS // 2)) as pair:
                step = e.b.add(e.b.mul(group, I64(INPUTS // 2)), pair)
                raw = e.vectors(e.plus(self.weights, step, 2 * OUTPUTS), BYTES, 2 * LANES)
                self._add_pairs(partial, [e.b.sext(vector, SHORTS) for vector in raw], e.plus(self.x, step, 4))
            self._scale(partial, e.plus(self.scales, group, 2 * OUTPUTS))

    def int4(self) -> None:
        e, partial = self.e, self._sums(INTS)
        with e.loop(self.groups) as group:
            self._clear(partial)
            with e.loop(I64(INPUTS // 4)) as pairs:
                step = e.b.add(e.b.mul(group, I64(INPUTS // 4)), pairs)
                raw = e.vectors(e.plus(self.weights, step, 2 * OUTPUTS), BYTES, 2 * LANES)
                lower = [e.b.and_(vector, BYTES([15] * 2 * LANES)) for vector in raw]
                upper = [e.b.lshr(vector, BYTES([4] * 2 * LANES)) for vector in raw]
                for i, half in enumerate((lower, upper)):
                    at = e.plus(e.plus(self.x, step, 8), i, 4)
                    self._add_pairs(partial, [e.b.zext(vector, SHORTS) for vector in half], at)
            scales = e.plus(self.scales, group, 4 * OUTPUTS)
            self._scale(partial, scales)
            self._add_minima(e.plus(scales, OUTPUTS, 2), e.plus(self.sums, group, 4))

    def _clear(self, sums: list[list[Any]]) -> None:
        for row in sums:
            for vector in row:
                self.e.b.store(ir.Constant(INTS, None), vector)

    def _add_pairs(self, partial: list[list[Any]], weights: list[Any], address: Any) -> None:
        """Products of int16 pairs of a block with the rows' pairs, whose first is at an address, to a group's sums."""
        e = self.e
        for x, sums in zip(self._repeated(address, I32), partial, strict=True):
            for weight, total in zip(weights, sums, strict=True):
                e.b.store(e.int16_product(e.b.load(total), weight, e.b.bitcast(x, SHORTS)), total)

    def _scale(self, partial: list[list[Any]], address: Any) -> None:
        """Add a group's exact sums, times the scales at an address, to the totals."""
        e = self.e
        scales = [e.upper_half(vector) for vector in e.vectors(address, HALVES, 2 * LANES)]
        for sums, totals in zip(partial, self.totals, strict=True):
            for exact, scale, total in zip(sums, scales, totals, strict=True):
                e.b.store(e.fma(e.b.sitofp(e.b.load(exact), FLOATS), scale, e.b.load(total)), total)

    def _add_minima(self, address: Any, sums: Any) -> None:
        """Add the minima at an address, times the sum of each row's inputs in this group."""
        e = self.e
        minima = [e.upper_half(vector) for vector in e.vectors(address, HALVES, 2 * LANES)]
        for x, totals in zip(self._repeated(sums, F32), self.totals, strict=True):
            for minimum, total in zip(minima, totals, strict=True):
                e.b.store(e.fma(minimum, x, e.b.load(total)), total)


@cache
def tiles(kind: str) -> NDArray[np.int64]:
    """Addresses of the compiled tiles of a format, in the order of `SIZES`. Each is a C function of seven int64:

    weights, scales: addresses of a block. x: address of the first row; stride: bytes from row to row. sums: address of
    the first row's float32 sums of each group, as far from row to row (int4 only). y: where float32 (rows, 32) go.
    groups: how many. Rows of int16 still are to be multiplied by their own scale.
    """
    module = ir.Module(kind)
    module.triple = llvm.get_process_triple()
    for rows in sorted(set(SIZES[kind])):
        tile = Tile(module, f"{kind}_{rows}", rows)
        {"fp32": tile.fp32, "bf16": tile.bf16, "int8": tile.int8, "int4": tile.int4}[kind]()
        tile.finish()
    engine = _compiled(str(module))
    return np.array([engine.get_function_address(f"{kind}_{rows}") for rows in SIZES[kind]], np.int64)


_engines: list[Any] = []  # for ever: they own the code


def _compiled(text: str) -> Any:
    machine = target_machine()
    module = llvm.parse_assembly(text)
    module.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, target_machine())
    engine.finalize_object()
    _engines.append(engine)
    return engine
