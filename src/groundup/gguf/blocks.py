"""How GGUF keeps numbers: plain, or in blocks that share a scale. Each format is a layout and a formula.

A tensor's rows are cut into blocks of 32 values ("legacy" formats) or 256 ("k-quants", Kawrakow 2023,
https://github.com/ggml-org/llama.cpp/pull/1684). The formats that end in _0 are symmetric, value = scale * q; those in
_1, and Q4_K and Q5_K, add a minimum. The layouts are those of the structs in ggml's ggml-common.h.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from groundup.config import nearest

Blocks = np.ndarray  # of one of the structured types below
Packed = np.ndarray  # of uint8
Values = np.ndarray  # of float32


@dataclass(frozen=True)
class Kind:
    """One format. `number` is GGUF's for it; a block of layout `block` holds `size` values."""

    name: str
    number: int
    size: int
    block: np.dtype
    decode: Callable[[Blocks], Values]

    def nbytes(self, count: int) -> int:
        """The bytes of `count` values, which fill whole blocks."""
        return count // self.size * self.block.itemsize


def dequantise(kind: Kind, data: bytes | memoryview, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The tensor of this row-major `shape` as float32, in memory of its own. It may hold NaN: scales may be NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        return kind.decode(np.frombuffer(data, kind.block)).reshape(shape)


def quantise(kind: Kind, values: NDArray[np.float32]) -> bytes:
    """The bytes of a tensor in one of F32, F16, BF16 and Q8_0. ValueError for a format that is read only.

    Rows have to be a multiple of the block long (32 for Q8_0). Infinite values, of which float16 makes some, are
    ValueErrors too.
    """
    if kind.name not in ENCODERS:
        raise ValueError(f"{kind.name} is read only; expected one of {', '.join(ENCODERS)}")
    if values.shape[-1] % kind.size:
        raise ValueError(f"rows of {values.shape[-1]} values are not whole blocks of {kind.size}, as {kind.name} needs")
    return ENCODERS[kind.name](np.ascontiguousarray(values, np.float32))


def kind_of(number: int) -> Kind:
    """The format with this number in a file. ValueError names one that is not read here."""
    if number in _BY_NUMBER:
        return _BY_NUMBER[number]
    name = f"type {_OTHERS[number]}" if number in _OTHERS else f"a type with the number {number}"
    raise ValueError(f"{name} is not supported; expected one of {', '.join(KINDS)}")


def kind_named(name: str) -> Kind:
    """The format of this name, in upper or lower case."""
    if name.upper() not in KINDS:
        raise ValueError(
            f"{name!r} is no format of numbers{nearest(name.upper(), KINDS)}; there are {', '.join(KINDS)}"
        )
    return KINDS[name.upper()]


# plain numbers ---------------------------------------------------------------------------------------------------


def decode_f32(values: Values) -> Values:
    """IEEE single precision, as it is."""
    return values.astype(np.float32)


def decode_f16(values: np.ndarray) -> Values:
    """IEEE half precision: 5 bits of exponent, 10 of fraction; exact in float32."""
    return values.astype(np.float32)


def decode_bf16(values: np.ndarray) -> Values:
    """The upper half of a float32: its sign, all 8 bits of exponent, 7 of fraction."""
    return (values.astype(np.uint32) << 16).view(np.float32)


def encode_f16(values: Values) -> bytes:
    """To the nearest half. ValueError beyond 65,504, where halves end."""
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    if not np.isfinite(halves).all():
        raise ValueError(f"{np.abs(values).max():g} is larger than float16 can hold (65504); use bf16 or f32")
    return halves.tobytes()


def encode_bf16(values: Values) -> bytes:
    """To the nearest, ties to even: add half of what is cut off, and the carry does the rest."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


# blocks of 32 ----------------------------------------------------------------------------------------------------

Q8_0 = np.dtype([("scale", "<f2"), ("q", "i1", 32)])
Q4_0 = np.dtype([("scale", "<f2"), ("q", "u1", 16)])
Q4_1 = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("q", "u1", 16)])
Q5_0 = np.dtype([("scale", "<f2"), ("high", "u1", 4), ("q", "u1", 16)])
Q5_1 = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("high", "u1", 4), ("q", "u1", 16)])


def _single(blocks: Blocks, field: str) -> Values:
    """A field of each block as a column of float32, (blocks, 1)."""
    return blocks[field].astype(np.float32)[:, None]


def _nibbles(packed: Packed) -> Packed:
    """(..., n) bytes as (..., 2n) numbers of 4 bits: all lower halves first, then all upper halves."""
    return np.concatenate([packed & 15, packed >> 4], -1)


def _fifth_bits(blocks: Blocks) -> Packed:
    """The 32 bits of `high`, lowest first, each in the place that makes it 16."""
    return np.unpackbits(blocks["high"], axis=-1, bitorder="little") << 4


def decode_q8_0(blocks: Blocks) -> Values:
    """34 bytes for 32 values, 8.5 bits each: value = scale * q, q from -127 to 127."""
    return _single(blocks, "scale") * blocks["q"]


def decode_q4_0(blocks: Blocks) -> Values:
    """18 bytes for 32 values, 4.5 bits each: value = scale * (q - 8), q from 0 to 15.

    Byte j holds q[j] in its lower and q[j + 16] in its upper half.
    """
    return _single(blocks, "scale") * (_nibbles(blocks["q"]).astype(np.float32) - 8)


def decode_q4_1(blocks: Blocks) -> Values:
    """20 bytes for 32 values, 5 bits each: value = scale * q + minimum; halves as in Q4_0."""
    return _single(blocks, "scale") * _nibbles(blocks["q"]) + _single(blocks, "minimum")


def decode_q5_0(blocks: Blocks) -> Values:
    """22 bytes for 32 values: value = scale * (q - 16). The fifth bit of q[j] is bit j of `high`."""
    q = _nibbles(blocks["q"]) | _fifth_bits(blocks)
    return _single(blocks, "scale") * (q.astype(np.float32) - 16)


def decode_q5_1(blocks: Blocks) -> Values:
    """24 bytes for 32 values: value = scale * q + minimum, q of five bits as in Q5_0."""
    q = _nibbles(blocks["q"]) | _fifth_bits(blocks)
    return _single(blocks, "scale") * q + _single(blocks, "minimum")


def encode_q8_0(values: Values) -> bytes:
    """scale = largest magnitude / 127; q = value / scale, to the nearest, halves away from zero, as ggml rounds.

    The division uses the scale before it becomes a half. ValueError where a block's scale would be no half.
    """
    rows = values.reshape(-1, 32)
    scale = np.abs(rows).max(1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        scaled = rows * np.where(scale == 0, np.float32(0), 1 / scale)
    blocks = np.empty(len(rows), Q8_0)
    blocks["scale"] = np.frombuffer(encode_f16(scale), "<f2")
    blocks["q"] = np.copysign(np.floor(np.abs(scaled) + np.float32(0.5)), scaled)
    return blocks.tobytes()


# blocks of 256 ---------------------------------------------------------------------------------------------------

Q4_K = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("scales", "u1", 12), ("q", "u1", (4, 32))])
Q5_K = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("scales", "u1", 12), ("high", "u1", 32), ("q", "u1", (4, 32))])
Q6_K = np.dtype([("q", "u1", (2, 64)), ("high", "u1", (2, 32)), ("scales", "i1", 16), ("scale", "<f2")])


def unpack_scales(packed: Packed) -> tuple[Packed, Packed]:
    """12 bytes as (8 scales, 8 minimums) of six bits each: the `scales` of Q4_K and Q5_K.

    Bytes 0..3 hold scales 0..3 in their lower six bits, bytes 4..7 minimums 0..3. Of scales 4..7 the lower four
    bits are the lower halves of bytes 8..11, and the upper two bits are the upper two of bytes 0..3; of minimums
    4..7 they are the upper halves of bytes 8..11 and the upper two bits of bytes 4..7.
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], -1)
    minimums = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], -1)
    return scales, minimums


def _scale_and_shift(blocks: Blocks, q: Packed) -> Values:
    """scale * scales[j] * q - minimum * minimums[j] for the eight sub-blocks j of 32 values; q (blocks, 8, 32)."""
    scales, minimums = unpack_scales(blocks["scales"])
    steps, shifts = _single(blocks, "scale") * scales, _single(blocks, "minimum") * minimums
    return steps[..., None] * q - shifts[..., None]


def decode_q4_k(blocks: Blocks) -> Values:
    """144 bytes for 256 values, 4.5 bits each: 8 sub-blocks of 32, each with a scale and a minimum of six bits.

    value = (scale * scales[j]) * q - (minimum * minimums[j]) in sub-block j. The 32 bytes number i of `q` hold
    sub-block 2i in their lower halves and 2i + 1 in their upper.
    """
    return _scale_and_shift(blocks, _nibbles(blocks["q"]).reshape(-1, 8, 32))


def decode_q5_k(blocks: Blocks) -> Values:
    """176 bytes for 256 values: Q4_K with a fifth bit, that of value l of sub-block j in bit j of byte l of `high`."""
    bits = np.unpackbits(blocks["high"][:, None], axis=1, bitorder="little")
    return _scale_and_shift(blocks, _nibbles(blocks["q"]).reshape(-1, 8, 32) | bits << 4)


def decode_q6_k(blocks: Blocks) -> Values:
    """210 bytes for 256 values, 6.5625 bits each: value = (scale * scales[i // 16]) * (q[i] - 32).

    Each half of 128 values is four runs of 32. Their lower four bits are 64 bytes: the lower halves hold runs 0 and
    1, the upper halves 2 and 3. Their upper two bits are 32 bytes, in which run k has bits 2k and 2k + 1.
    """
    low = _nibbles(blocks["q"]).reshape(-1, 2, 4, 32)
    high = blocks["high"][:, :, None] >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    q = (low | high << 4).astype(np.int8) - np.int8(32)
    steps = _single(blocks, "scale") * blocks["scales"]
    return steps[..., None] * q.reshape(-1, 16, 16)


KINDS = {
    kind.name: kind
    for kind in (
        Kind("F32", 0, 1, np.dtype("<f4"), decode_f32),
        Kind("F16", 1, 1, np.dtype("<f2"), decode_f16),
        Kind("BF16", 30, 1, np.dtype("<u2"), decode_bf16),
        Kind("Q8_0", 8, 32, Q8_0, decode_q8_0),
        Kind("Q4_0", 2, 32, Q4_0, decode_q4_0),
        Kind("Q4_1", 3, 32, Q4_1, decode_q4_1),
        Kind("Q5_0", 6, 32, Q5_0, decode_q5_0),
        Kind("Q5_1", 7, 32, Q5_1, decode_q5_1),
        Kind("Q4_K", 12, 256, Q4_K, decode_q4_k),
        Kind("Q5_K", 13, 256, Q5_K, decode_q5_k),
        Kind("Q6_K", 14, 256, Q6_K, decode_q6_k),
    )
}
ENCODERS: dict[str, Callable[[Values], bytes]] = {
    "F32": lambda values: values.astype("<f4").tobytes(),
    "F16": encode_f16,
    "BF16": encode_bf16,
    "Q8_0": encode_q8_0,
}
_BY_NUMBER = {kind.number: kind for kind in KINDS.values()}
# Known by name only, for the message.
_OTHERS = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
