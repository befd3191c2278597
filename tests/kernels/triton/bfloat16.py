"""Triton's interpreter in bfloat16, which NumPy does not have: without this it is silently wrong.

It keeps bfloat16 as uint16 bit patterns. `tl.dot` then multiplies the patterns as integers, and casts from float32 cut
the lower half off instead of rounding to the nearest even. Both are put right here, for the tests' process only.
"""

from typing import Any

import numpy as np


def to_float32(bits: Any) -> Any:
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(values: Any) -> Any:
    """Rounded to the nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def repair_interpreter() -> None:
    """Once; the interpreter's builder is a class that all kernels share."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    if getattr(builder, "repaired", False):
        return
    dot, cast = builder.create_dot, builder.cast_impl

    def create_dot(self, a, b, d, *rest):
        if tl.bfloat16 not in (a.dtype.scalar, b.dtype.scalar):
            return dot(self, a, b, d, *rest)
        left, right = (to_float32(h.data) if h.dtype.scalar == tl.bfloat16 else h.data for h in (a, b))
        return interpreter.TensorHandle(np.matmul(left, right, dtype=d.data.dtype) + d.data, d.dtype.scalar)

    def cast_impl(self, src, dst_type):
        if (src.dtype.scalar, dst_type.scalar) == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle(to_bfloat16(src.data), dst_type.scalar)
        return cast(self, src, dst_type)

    builder.create_dot, builder.cast_impl = create_dot, cast_impl
    builder.create_fp_trunc = builder.create_fp_ext = cast_impl
    builder.repaired = True
