"""What is done to one row of activations: norms, activation functions, and rounding for the next matrix product."""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types  # pyright: ignore[reportPrivateImportUsage]

from groundup.inference.decode.team import compiled, compiled_ignoring_nan, intrinsic

NO_NORM, RMS_NORM, LAYER_NORM = 0, 1, 2
ACTIVATIONS = {"identity": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4, "sigmoid": 5, "relu2": 6}
INPUTS = 32  # of a group, as in tile
LARGEST = 32767.0  # of int16


def pointer_to(kind: Any) -> Any:
    """For compiled code: an address as that of numbers, or records, of a kind."""

    @intrinsic
    def pointer(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return pointer


_float32, _int16 = pointer_to(types.float32), pointer_to(types.int16)
_uint16, _int64 = pointer_to(types.uint16), pointer_to(types.int64)


@compiled
def floats(address, count):
    """float32 numbers at an address."""
    return carray(_float32(address), (count,))


@compiled
def integers(address, count):
    """int64 numbers at an address."""
    return carray(_int64(address), (count,))


@compiled
def table(address, rows, width):
    """Rows of int64 numbers at an address."""
    return carray(_int64(address), (rows, width))


@compiled
def row_at(address, width, row):
    """A row of float32 rows at an address."""
    return floats(address + 4 * width * row, width)


@compiled
def shorts(address, count):
    """int16 numbers at an address."""
    return carray(_int16(address), (count,))


@compiled
def halves(address, count):
    """bfloat16 numbers at an address, as their bits."""
    return carray(_uint16(address), (count,))


@intrinsic
def bits(typing: Any, value: Any) -> Any:
    """The 32 bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@intrinsic
def from_bits(typing: Any, value: Any) -> Any:
    """The float32 of these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@compiled
def to_bf16(value):
    """The nearest bfloat16, ties to even: the carry of what is cut off rounds."""
    word = bits(value)
    return np.uint16((word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@compiled
def from_bf16(half):
    return from_bits(np.uint32(half) << np.uint32(16))


@compiled
def exponential(x):
    """e^x in float32 to 2 units in the last place, without a branch, so that a loop over it becomes vectors.

    e^x = 2^n e^r with n the nearest whole number to x / ln 2; e^r by its series, |r| < 0.35; 2^n is made of bits.
    """
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = x - n * np.float32(0.693359375)  # ln 2 in two parts: the first has few bits, so that its product is exact
    r = r + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    return (p * r * r + r + np.float32(1)) * from_bits(np.uint32((np.int32(n) + np.int32(127)) << np.int32(23)))


@compiled
def sigmoid(x):
    return np.float32(1) / (np.float32(1) + exponential(-x))


@compiled
def tanh(x):
    return np.float32(2) * sigmoid(np.float32(2) * x) - np.float32(1)


@compiled
def activate(values, activation):
    """Every value through the activation function of this number, in place."""
    if activation == 1:
        for i in range(values.size):
            values[i] = max(values[i], np.float32(0))
    elif activation == 2:
        for i in range(values.size):
            values[i] = np.float32(0.5 * values[i] * (1.0 + math.erf(values[i] * 0.7071067811865476)))
    elif activation == 3:
        for i in range(values.size):
            x = values[i]
            inner = np.float32(0.7978845608028654) * (x + np.float32(0.044715) * x * x * x)
            values[i] = x * sigmoid(np.float32(2) * inner)  # 0.5 (1 + tanh z) = sigmoid(2 z)
    elif activation == 4:
        for i in range(values.size):
            values[i] = values[i] * sigmoid(values[i])
    elif activation == 5:
        for i in range(values.size):
            values[i] = sigmoid(values[i])
    elif activation == 6:
        for i in range(values.size):
            positive = max(values[i], np.float32(0))
            values[i] = positive * positive


@compiled
def norm(kind, x, gain, bias, eps, y):
    """y = the norm of x times gain, plus bias where that has an address (0: none); gain and bias are addresses."""
    n = x.size
    if kind == NO_NORM:
        for i in range(n):
            y[i] = x[i]
        return
    mean = np.float32(0)
    if kind == LAYER_NORM:
        for i in range(n):
            mean += x[i]
        mean /= np.float32(n)
    square = np.float32(0)
    for i in range(n):
        square += (x[i] - mean) * (x[i] - mean)
    factor = np.float32(1) / np.sqrt(square / np.float32(n) + eps)
    gains = floats(gain, n)
    for i in range(n):
        y[i] = (x[i] - mean) * factor * gains[i]
    if bias:
        biases = floats(bias, n)
        for i in range(n):
            y[i] += biases[i]


@compiled
def round_fp32(x, address):
    out = floats(address, x.size)
    for i in range(x.size):
        out[i] = x[i]


@compiled
def round_bf16(x, address):
    out = halves(address, x.size)
    for i in range(x.size):
        out[i] = to_bf16(x[i])


@compiled_ignoring_nan  # or the loop is no vectors
def _largest_size(x):
    largest = np.float32(0)
    for i in range(x.size):
        largest = max(largest, abs(x[i]))
    return largest


@compiled_ignoring_nan  # or the loop is no vectors
def largest_of(x, largest):
    """The largest of the numbers of a row and one more."""
    for i in range(x.size):
        largest = max(largest, x[i])
    return largest


@compiled
def round_int16(x, address, sums):
    """x as scale * int16: the scale is returned, the sums of each group of 32 go to address `sums` (0: nowhere)."""
    largest = _largest_size(x)
    out = shorts(address, x.size)
    inverse = np.float32(LARGEST) / largest if largest > 0 else np.float32(0)
    for i in range(x.size):
        out[i] = np.int16(np.rint(x[i] * inverse))
    if sums:
        of_groups = floats(sums, x.size // INPUTS)
        for group in range(of_groups.size):
            total = np.int32(0)
            for i in range(INPUTS):
                total += np.int32(out[group * INPUTS + i])
            of_groups[group] = np.float32(total)
    return largest / np.float32(LARGEST)
