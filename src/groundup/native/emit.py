"""Vectors: what loops over registers are written with, and who compiles them.

Numba has no vectors, so these loops are written in LLVM's language, which is compiled for any processor. One
instruction has no portable name, the product of bfloat16 pairs; where a processor lacks it, pairs are widened.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from groundup.native.processor import processor_features, target_machine

LANES = 16
LINE = 64
"""Bytes of a cache line."""


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


def has_byte_products() -> bool:
    """Whether this processor sums products of four bytes in a step, 16 sums at a time."""
    return bool(processor_features().get("avx512vnni", False))


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

    def vectors(self, address: Any, kind: ir.Type, size: int, count: int) -> list[Any]:
        """`count` vectors of `size` bytes that lie from an address on."""
        return [self.load(self.plus(address, i, size), kind) for i in range(count)]

    def fetch(self, address: Any, size: int) -> None:
        """Ask for `size` bytes from an address on to come into the second cache, without waiting."""
        pointer = I8.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
        for line in range(-(-size // LINE)):
            place = self.b.inttoptr(self.plus(address, line, LINE), pointer)
            self.call("llvm.prefetch.p0", kind, place, I32(0), I32(2), I32(1))  # to read; how near; data

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

    def byte_product(self, total: Any, unsigned: Any, signed: Any) -> Any:
        """total + the four products of bytes of each 32 bits, exactly. Needs `has_byte_products`."""
        kind = ir.FunctionType(INTS, [INTS] * 3)
        return self.call("llvm.x86.avx512.vpdpbusd.512", kind, total, unsigned, signed)

    def int16_product(self, total: Any, weights: Any, x: Any) -> Any:
        """total + both products of each pair of int16. Written out: LLVM knows the instructions for it."""
        wide = ir.VectorType(I32, 2 * LANES)
        products = self.b.mul(self.b.sext(weights, wide), self.b.sext(x, wide))
        nothing = ir.Constant(wide, ir.Undefined)
        even, odd = (self.b.shuffle_vector(products, nothing, INTS(list(range(i, 2 * LANES, 2)))) for i in (0, 1))
        return self.b.add(total, self.b.add(even, odd))


def new_function(module: ir.Module, name: str, arguments: int) -> tuple[Emitter, list[Any]]:
    """A function of so many int64 that returns nothing, and its arguments."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * arguments), name)
    return Emitter(ir.IRBuilder(function.append_basic_block())), list(function.args)


def new_module(name: str) -> ir.Module:
    module = ir.Module(name)
    module.triple = llvm.get_process_triple()
    return module


_engines: list[Any] = []  # for ever: they own the code


def addresses(module: ir.Module) -> dict[str, int]:
    """Compile a module; where each of its functions is."""
    names = [function.name for function in module.functions if not function.is_declaration]
    engine = _compiled(str(module))
    return {name: engine.get_function_address(name) for name in names}


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
