"""What the loops of int8 products share: rounding in registers, and how threads share work out among themselves."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from groundup.kernels.quantize import SMALLEST_AMAX
from groundup.native.emit import F32, FLOATS, I64, INTS, LANES, Emitter

QUAD = 4
"""Bytes of which one instruction sums the products."""
NEAREST = 1.5 * 2**23
"""Added to a small number it leaves the nearest integer, ties to even, in the low bits."""


def add_one(e: Emitter, address: Any) -> Any:
    """The number at an address, which is one more from now on; no other thread gets the same."""
    return e.b.atomic_rmw("add", e.b.inttoptr(address, I64.as_pointer()), I64(1), "acq_rel")


@contextmanager
def taking(e: Emitter, counter: Any, count: Any) -> Iterator[Any]:
    """Do what is written inside for each number below count that no other thread has taken."""
    again, body, after = (e.b.append_basic_block() for _ in range(3))
    e.b.branch(again)
    e.b.position_at_end(again)
    number = add_one(e, counter)
    e.b.cbranch(e.b.icmp_signed("<", number, count), body, after)
    e.b.position_at_end(body)
    yield number
    e.b.branch(again)
    e.b.position_at_end(after)


def wait_for(e: Emitter, counter: Any, count: Any) -> None:
    """Until the counter has come to count. What is waited for is a block's microseconds, as nobody else takes one."""
    again, after = (e.b.append_basic_block() for _ in range(2))
    e.b.branch(again)
    e.b.position_at_end(again)
    e.call("llvm.x86.sse2.pause", ir.FunctionType(ir.VoidType(), []))
    number = e.b.load_atomic(e.b.inttoptr(counter, I64.as_pointer()), "acquire", 8)
    e.b.cbranch(e.b.icmp_signed("<", number, count), again, after)
    e.b.position_at_end(after)


def inverse_and_scale(e: Emitter, amax: Any, kind: Any = F32) -> tuple[Any, Any]:
    """127 / amax, and amax / 127."""

    def constant(value: float) -> Any:
        return kind([value] * LANES) if kind is FLOATS else kind(value)

    small = e.b.fcmp_ordered("<", amax, constant(SMALLEST_AMAX))
    amax = e.b.select(small, constant(1.0), amax)
    return e.b.fdiv(constant(127.0), amax), e.b.fmul(amax, constant(_single(1 / 127)))


def _single(value: float) -> float:
    """The nearest float32, which is what LLVM takes for one."""
    return ctypes.c_float(value).value


def nearest(e: Emitter, numbers: Any, inverse: Any) -> Any:
    """The nearest integers of numbers * inverse, in the low bits of int32."""
    return e.b.bitcast(e.b.fadd(e.b.fmul(numbers, inverse), FLOATS([NEAREST] * LANES)), INTS)


def larger(e: Emitter, a: Any, b: Any) -> Any:
    return e.b.select(e.b.icmp_unsigned(">", a, b), a, b)
