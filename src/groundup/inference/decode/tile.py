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

`INPUTS` inputs make a group; rows and matrices are padded with zeros to whole groups. What stands in memory per group:

    fp32   32 x 32 float32 (no pairs), rows of float32
    bf16   16 x 32 pairs of bfloat16, rows of bfloat16; products are exact and sums are float32
    int8   16 x 32 pairs of int8 and 32 scales, rows of int16; sums of a group are exact
    int4   8 x 32 bytes, each one value of pair 2i (lower half) and one of pair 2i + 1, 32 scales and 32 minima:
           value = scale * q + minimum
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from groundup.native.emit import (
    BYTES,
    F32,
    FLOATS,
    HALVES,
    I32,
    I64,
    INTS,
    LANES,
    SHORTS,
    addresses,
    new_function,
    new_module,
)  # fmt: skip

OUTPUTS, INPUTS = 32, 32
VECTORS = OUTPUTS // LANES
AHEAD = 4096
"""Bytes by which weights are asked for ahead of their use. The processor does so by itself, but only within a page."""
SIZES = {"fp32": (1, 2, 4, 8, 12), "bf16": (1, 2, 4, 8, 12), "int8": (1, 2, 4, 4, 6), "int4": (1, 2, 4, 4, 6)}
"""Rows of each tile of a format, so that its sums fit in 32 registers beside the weights. Integers need two sums per
output, of the group and of all; their tiles run twice for the last two sizes, 8 and 12."""


class Tile:
    """One function: `weights`, ... are its arguments, see `tiles`; `totals[row][i]` sums outputs 16 i to 16 i + 15."""

    def __init__(self, module: ir.Module, name: str, rows: int) -> None:
        self.e, arguments = new_function(module, name, 7)
        self.weights, self.scales, self.x, self.stride, self.sums, self.y, self.groups = arguments
        self.rows = rows
        self.totals = self._sums(FLOATS)

    def _sums(self, kind: ir.Type) -> list[list[Any]]:
        return [[self.e.variable(kind) for _ in range(VECTORS)] for _ in range(self.rows)]

    def _repeated(self, address: Any, kind: ir.Type) -> Iterator[Any]:
        """What each row has at an address of the first row, over a vector."""
        for row in range(self.rows):
            own = self.e.b.add(address, self.e.b.mul(self.stride, I64(row)))
            yield self.e.repeat(self.e.load(own, kind))

    def _weights(self, step: Any, kind: ir.Type, size: int) -> list[Any]:
        """What all outputs multiply in a step, in vectors of `size` bytes; what comes a while later is asked for."""
        place = self.e.plus(self.weights, step, size * VECTORS)
        self.e.fetch(self.e.b.add(place, I64(AHEAD)), size * VECTORS)
        return self.e.vectors(place, kind, size, VECTORS)

    def finish(self) -> None:
        for row, totals in enumerate(self.totals):
            for i, total in enumerate(totals):
                self.e.store(self.e.b.load(total), self.e.plus(self.y, row * VECTORS + i, 4 * LANES))
        self.e.b.ret_void()

    def fp32(self) -> None:
        e = self.e
        with e.loop(e.b.mul(self.groups, I64(INPUTS))) as step:
            weights = self._weights(step, FLOATS, 4 * LANES)
            for x, totals in zip(self._repeated(e.plus(self.x, step, 4), F32), self.totals, strict=True):
                for weight, total in zip(weights, totals, strict=True):
                    e.b.store(e.fma(weight, x, e.b.load(total)), total)

    def bf16(self) -> None:
        e = self.e
        with e.loop(e.b.mul(self.groups, I64(INPUTS // 2))) as step:
            weights = self._weights(step, INTS, 4 * LANES)
            for x, totals in zip(self._repeated(e.plus(self.x, step, 4), I32), self.totals, strict=True):
                for weight, total in zip(weights, totals, strict=True):
                    e.b.store(e.bf16_product(e.b.load(total), weight, x), total)

    def int8(self) -> None:
        e, partial = self.e, self._sums(INTS)
        with e.loop(self.groups) as group:
            self._clear(partial)
            with e.loop(I64(INPUTS // 2)) as pair:
                step = e.b.add(e.b.mul(group, I64(INPUTS // 2)), pair)
                raw = self._weights(step, BYTES, 2 * LANES)
                self._add_pairs(partial, [e.b.sext(vector, SHORTS) for vector in raw], e.plus(self.x, step, 4))
            self._scale(partial, e.plus(self.scales, group, 2 * OUTPUTS))

    def int4(self) -> None:
        e, partial = self.e, self._sums(INTS)
        with e.loop(self.groups) as group:
            self._clear(partial)
            with e.loop(I64(INPUTS // 4)) as pairs:
                step = e.b.add(e.b.mul(group, I64(INPUTS // 4)), pairs)
                raw = self._weights(step, BYTES, 2 * LANES)
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
        scales = [e.upper_half(vector) for vector in e.vectors(address, HALVES, 2 * LANES, VECTORS)]
        for sums, totals in zip(partial, self.totals, strict=True):
            for exact, scale, total in zip(sums, scales, totals, strict=True):
                e.b.store(e.fma(e.b.sitofp(e.b.load(exact), FLOATS), scale, e.b.load(total)), total)

    def _add_minima(self, address: Any, sums: Any) -> None:
        """Add the minima at an address, times the sum of each row's inputs in this group."""
        e = self.e
        minima = [e.upper_half(vector) for vector in e.vectors(address, HALVES, 2 * LANES, VECTORS)]
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
    module = new_module(kind)
    for rows in sorted(set(SIZES[kind])):
        tile = Tile(module, f"{kind}_{rows}", rows)
        {"fp32": tile.fp32, "bf16": tile.bf16, "int8": tile.int8, "int4": tile.int4}[kind]()
        tile.finish()
    found = addresses(module)
    return np.array([found[f"{kind}_{rows}"] for rows in SIZES[kind]], np.int64)
