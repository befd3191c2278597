"""The words of the machine that Numba does not have: typed pointers, bit counts, vectors of bytes, calls by address.

Kernels are written on raw memory, as in C: `u64_at(address)` makes a pointer that is indexed like an array. Integers
keep to two types, because Numba turns a mixture of int64 and uint64 into a float: int64 for places, lengths and ids,
uint64 for bits, keys and hashes. `u64` and `i64` convert.

Nearly everything here is LLVM's generic language (vectors of 64 bytes included), which becomes AVX-512, AVX2, SSE2 or
NEON, whatever the processor has. Where an instruction is named, its generic form stands beside it.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types

from groundup.native.processor import processor_features

kernel = njit(nogil=True, error_model="numpy", boundscheck=False)  # compiled when a unit of object code is made
u64, i64 = np.uint64, np.int64

intrinsic: Any = extending.intrinsic  # what it decorates is called without the typing context
_I1, _I8, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
_BLOCK = ir.VectorType(_I8, 64)
HAS_BZHI = processor_features().get("bmi2", False)
HAS_COMPRESS = processor_features().get("avx512vbmi2", False)


def _pointer_maker(element: types.Integer, name: str) -> Any:
    def typer(typingctx: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.int64), generate

    typer.__name__ = name
    return intrinsic(typer)


u8_at = _pointer_maker(types.uint8, "u8_at")
u16_at = _pointer_maker(types.uint16, "u16_at")
u32_at = _pointer_maker(types.uint32, "u32_at")
i32_at = _pointer_maker(types.int32, "i32_at")
u64_at = _pointer_maker(types.uint64, "u64_at")
i64_at = _pointer_maker(types.int64, "i64_at")


@intrinsic
def load_u64(typingctx: Any, address: Any) -> Any:
    """The 8 bytes at any address, as a little-endian number."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _unaligned_load(builder, args[0], _I64)

    return types.uint64(types.int64), generate


@intrinsic
def store_u64(typingctx: Any, address: Any, value: Any) -> Any:
    """Write 8 bytes to any address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], _I64.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), generate


@intrinsic
def copy_16(typingctx: Any, target: Any, source: Any) -> Any:
    """Copy 16 bytes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = _unaligned_load(builder, args[1], ir.VectorType(_I8, 16))
        pointer = builder.inttoptr(args[0], ir.VectorType(_I8, 16).as_pointer())
        builder.store(value, pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def copy(typingctx: Any, target: Any, source: Any, size: Any) -> Any:
    """Copy `size` bytes between places that do not overlap."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = _I8.as_pointer()
        function = _declare(builder, "llvm.memcpy.p0.p0.i64", ir.VoidType(), [byte, byte, _I64, _I1])
        builder.call(
            function, [builder.inttoptr(args[0], byte), builder.inttoptr(args[1], byte), args[2], ir.Constant(_I1, 0)]
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def fill(typingctx: Any, target: Any, byte_value: Any, size: Any) -> Any:
    """Set `size` bytes to one value."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = _I8.as_pointer()
        function = _declare(builder, "llvm.memset.p0.i64", ir.VoidType(), [byte, _I8, _I64, _I1])
        value = builder.trunc(args[1], _I8)
        builder.call(function, [builder.inttoptr(args[0], byte), value, args[2], ir.Constant(_I1, 0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at this address; it will be read soon."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = _I8.as_pointer()
        function = _declare(builder, "llvm.prefetch.p0", ir.VoidType(), [byte, _I32, _I32, _I32])
        reading, every_level, data = (ir.Constant(_I32, value) for value in (0, 3, 1))
        builder.call(function, [builder.inttoptr(args[0], byte), reading, every_level, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def trailing_zeros(typingctx: Any, bits: Any) -> Any:
    """The place of the lowest 1; 64 when there is none."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = _declare(builder, "llvm.cttz.i64", _I64, [_I64, _I1])
        return builder.call(function, [args[0], ir.Constant(_I1, 0)])

    return types.int64(types.uint64), generate


@intrinsic
def leading_zeros(typingctx: Any, bits: Any) -> Any:
    """The number of 0 above the highest 1; 64 when there is none."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = _declare(builder, "llvm.ctlz.i64", _I64, [_I64, _I1])
        return builder.call(function, [args[0], ir.Constant(_I1, 0)])

    return types.int64(types.uint64), generate


@intrinsic
def count_ones(typingctx: Any, bits: Any) -> Any:
    """How many bits are 1."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(_declare(builder, "llvm.ctpop.i64", _I64, [_I64]), [args[0]])

    return types.int64(types.uint64), generate


@intrinsic
def select(typingctx: Any, condition: Any, yes: Any, no: Any) -> Any:
    """`yes if condition else no`, of two uint64, without a branch."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bit = args[0] if args[0].type == _I1 else builder.trunc(args[0], _I1)
        return builder.select(bit, args[1], args[2])

    return types.uint64(types.boolean, types.uint64, types.uint64), generate


@intrinsic
def low_bytes(typingctx: Any, value: Any, count: Any) -> Any:
    """The lowest `count` bytes of a uint64, the others zero, for 1 to 8; what it gives for more is not defined."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.shl(args[1], ir.Constant(_I64, 3))
        if HAS_BZHI:
            return builder.call(_declare(builder, "llvm.x86.bmi.bzhi.64", _I64, [_I64, _I64]), [args[0], bits])
        unused = builder.and_(builder.sub(ir.Constant(_I64, 64), bits), ir.Constant(_I64, 63))
        return builder.and_(args[0], builder.lshr(ir.Constant(_I64, -1), unused))

    return types.uint64(types.uint64, types.int64), generate


@intrinsic
def call(typingctx: Any, function: Any, argument: Any) -> Any:
    """Call the compiled function `int64 f(int64)` at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = ir.FunctionType(_I64, [_I64]).as_pointer()
        return builder.call(builder.inttoptr(args[0], pointer), [args[1]])

    return types.int64(types.int64, types.int64), generate


@intrinsic
def byte_masks(typingctx: Any, address: Any) -> Any:
    """Nine 64-bit masks of the 64 bytes at an address, bit i for byte i.

    (not ASCII, upper case, lower case, digit, white space, the space itself, apostrophe, zero, line end); all but the
    first are of ASCII characters.
    """
    answer = types.UniTuple(types.uint64, 9)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        text = _unaligned_load(builder, args[0], _BLOCK)

        def within(first: str | int, count: int) -> Any:
            offset = builder.sub(text, _every(first))
            return builder.icmp_unsigned("<", offset, _every(count))

        def equals(byte: str | int) -> Any:
            return builder.icmp_unsigned("==", text, _every(byte))

        vectors = [
            builder.icmp_signed("<", text, _every(0)),
            within("A", 26),
            within("a", 26),
            within("0", 10),
            builder.or_(equals(" "), within("\t", 5)),
            equals(" "),
            equals("'"),
            equals(0),
            builder.or_(equals("\n"), equals("\r")),
        ]
        return context.make_tuple(builder, answer, [builder.bitcast(vector, _I64) for vector in vectors])

    return answer(types.int64), generate


@intrinsic
def equal_bytes(typingctx: Any, address: Any, byte: Any) -> Any:
    """Bit i tells whether byte i is `byte`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _mask(builder, "==", *args)

    return types.uint64(types.int64, types.int64), generate


@intrinsic
def bytes_from(typingctx: Any, address: Any, byte: Any) -> Any:
    """Bit i tells whether byte i is at least `byte`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _mask(builder, ">=", *args)

    return types.uint64(types.int64, types.int64), generate


def _mask(builder: Any, relation: str, address: Any, byte: Any) -> Any:
    text = _unaligned_load(builder, address, _BLOCK)
    undefined = ir.Constant(_BLOCK, ir.Undefined)
    first = builder.insert_element(undefined, builder.trunc(byte, _I8), ir.Constant(_I32, 0))
    everywhere = ir.Constant(ir.VectorType(_I32, 64), [0] * 64)
    vector = builder.shuffle_vector(first, undefined, everywhere)
    return builder.bitcast(builder.icmp_unsigned(relation, text, vector), _I64)


@kernel
def _write_places_one_by_one(bits, base, target):
    """Write the places of the ones of a word, plus `base`, as int32; up to 7 more places may be overwritten."""
    places = i32_at(target)
    done, ones = i64(0), count_ones(bits)
    while done < ones:  # eight at a time whether they are there or not: a loop without surprises for the processor
        for step in range(8):
            places[done + step] = base + trailing_zeros(bits)
            bits &= bits - u64(1)
        done += 8


@intrinsic
def _write_places_compressed(typingctx: Any, bits: Any, base: Any, target: Any) -> Any:
    """The same by the instruction that moves chosen bytes together; up to 63 more places may be overwritten."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits, base, target = args
        numbers = ir.Constant(_BLOCK, list(range(64)))
        chosen = builder.bitcast(bits, ir.VectorType(_I1, 64))
        compress = _declare(
            builder, "llvm.x86.avx512.mask.compress.v64i8", _BLOCK, [_BLOCK, _BLOCK, ir.VectorType(_I1, 64)]
        )
        places = builder.call(compress, [numbers, ir.Constant(_BLOCK, None), chosen])
        count = builder.call(_declare(builder, "llvm.ctpop.i64", _I64, [_I64]), [bits])
        _store_quarter(builder, places, 0, base, target)
        _store_quarter(builder, places, 1, base, target)
        with builder.if_then(builder.icmp_unsigned(">", count, ir.Constant(_I64, 32)), likely=False):
            _store_quarter(builder, places, 2, base, target)
            _store_quarter(builder, places, 3, base, target)
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64, types.int64), generate


def _store_quarter(builder: Any, places: Any, number: int, base: Any, target: Any) -> None:
    """Write 16 of 64 bytes, plus `base`, as int32."""
    wide = ir.VectorType(_I32, 16)
    chosen = ir.Constant(wide, list(range(16 * number, 16 * number + 16)))
    quarter = builder.zext(builder.shuffle_vector(places, places, chosen), wide)
    nothing = ir.Constant(wide, ir.Undefined)
    first = builder.insert_element(nothing, builder.trunc(base, _I32), ir.Constant(_I32, 0))
    bases = builder.shuffle_vector(first, nothing, ir.Constant(wide, [0] * 16))
    address = builder.add(target, ir.Constant(_I64, 64 * number))
    builder.store(builder.add(quarter, bases), builder.inttoptr(address, wide.as_pointer()), align=1)


def _packer(lane: Any, lanes: int, name: str, help: str) -> Any:
    """A helper that moves the lanes of 64 bytes together that are not full of ones."""
    full, chosen = ir.VectorType(lane, lanes), ir.VectorType(_I1, lanes)
    suffix = f"v{lanes}i{lane.width}"

    def typer(typingctx: Any, source: Any, target: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            values = _unaligned_load(builder, args[0], full)
            present = builder.icmp_unsigned("!=", values, ir.Constant(full, [-1] * lanes))
            compress = _declare(builder, f"llvm.x86.avx512.mask.compress.{suffix}", full, [full, full, chosen])
            packed = builder.call(compress, [values, ir.Constant(full, None), present])
            builder.store(packed, builder.inttoptr(args[1], full.as_pointer()), align=1)
            bits = builder.zext(builder.bitcast(present, ir.IntType(lanes)), _I64)
            return bits

        return types.uint64(types.int64, types.int64), generate

    typer.__name__, typer.__doc__ = name, help
    return intrinsic(typer)


_PACKED = "Write the lanes at one address that are not full of ones to another, without gaps; a bit for each, if it is."
pack_lanes_16 = _packer(ir.IntType(16), 32, "pack_lanes_16", _PACKED)
pack_lanes_32 = _packer(_I32, 16, "pack_lanes_32", _PACKED)
write_places = _write_places_compressed if HAS_COMPRESS else _write_places_one_by_one


def _every(byte: str | int) -> ir.Constant:
    return ir.Constant(_BLOCK, [ord(byte) if isinstance(byte, str) else byte] * 64)


def _unaligned_load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def _declare(builder: Any, name: str, returns: Any, takes: list[Any]) -> Any:
    module = builder.module
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(returns, takes), name)
