"""More words of the machine: masks of the 64 bytes at an address."""

from typing import Any

from llvmlite import ir
from numba import types

from groundup.tokenizer.fast.machine import intrinsic

_BYTES = ir.VectorType(ir.IntType(8), 64)


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
    text = builder.load(builder.inttoptr(address, _BYTES.as_pointer()), align=1)
    undefined = ir.Constant(_BYTES, ir.Undefined)
    first = builder.insert_element(undefined, builder.trunc(byte, ir.IntType(8)), ir.Constant(ir.IntType(32), 0))
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), 64), [0] * 64)
    vector = builder.shuffle_vector(first, undefined, everywhere)
    return builder.bitcast(builder.icmp_unsigned(relation, text, vector), ir.IntType(64))
