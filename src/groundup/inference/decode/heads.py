"""The inner loops of attention over pages: 16 keys at once against a query, and their values, in vector registers.

    slots t .. t + 15 of a page    key 0: d_head channels   key 1: ...    -> 16 scores, one register per query head
    and their weights              value 0, value 1, ...                  -> out += weight * value

A register has 16 lanes, and 16 keys give one register of scores: the lanes of 16 partial sums are added up in a tree of
four levels, in which each level halves the lanes of a key and doubles the keys of a register. Scores of slots that are
not filled come out as something; who calls does not read them.
"""

from functools import cache
from typing import Any

from llvmlite import ir

from groundup.native.emit import (
    F32,
    FLOATS,
    HALVES,
    I16,
    I32,
    I64,
    INTS,
    LANES,
    LINE,
    Emitter,
    addresses,
    new_function,
    new_module,
)  # fmt: skip

KEYS = 16
SUMS = 16
"""Registers that the outputs of a part's heads may take."""


def heads_at_once(d_head: int, group: int) -> int:
    """Query heads of a group, which share keys and values, that are done together: a divisor of the group."""
    fitting = [n for n in range(1, group + 1) if group % n == 0 and n * -(-d_head // LANES) <= SUMS]
    return max(fitting, default=1)


@cache
def head_loops(d_head: int, heads: int, in_bf16: bool) -> tuple[int, int, int]:
    """Addresses of three C functions of int64, the first two for so many query heads at once:

    scores(queries, keys, stride, scores, length, ahead): scores[head * length + i] = queries[head] . key i, i < 16.
    add_values(weights, length, values, stride, count, out, ahead): out[head] += weights[head * length + i] * value i
    for all i < count. Both ask for what lies in the same way from `ahead` on.
    fetch(address, size): ask for this memory to come near, without waiting.

    All but length and count are addresses, or strides in bytes. Queries and out are float32 (heads, d_head).
    """
    module = new_module(f"heads_{d_head}_{heads}_{in_bf16}")
    _scores(module, d_head, heads, in_bf16)
    _add_values(module, d_head, heads, in_bf16)
    _fetch(module)
    found = addresses(module)
    return found["scores"], found["add_values"], found["fetch"]


def _scores(module: ir.Module, d_head: int, heads: int, in_bf16: bool) -> None:
    e, (queries, keys, stride, scores, length, ahead) = new_function(module, "scores", 6)
    rows = [channels(e, e.plus(queries, head, 4 * d_head), d_head, in_bf16=False) for head in range(heads)]
    partial: list[list[Any]] = [[] for _ in range(heads)]
    for i in range(KEYS):
        place = e.b.mul(stride, I64(i))
        e.fetch(e.b.add(ahead, place), _size(d_head, in_bf16))
        key = channels(e, e.b.add(keys, place), d_head, in_bf16)
        for row, sums in zip(rows, partial, strict=True):
            total = ir.Constant(FLOATS, None)
            for a, b in zip(row, key, strict=True):
                total = e.fma(a, b, total)
            sums.append(total)
            add_neighbours(e, sums, i + 1)
    for head, (sums,) in enumerate(partial):
        e.store(sums, e.plus(scores, e.b.mul(I64(head), length), 4))
    e.b.ret_void()


def _size(d_head: int, in_bf16: bool) -> int:
    return d_head * (2 if in_bf16 else 4)


def _fetch(module: ir.Module) -> None:
    e, (address, size) = new_function(module, "fetch", 2)
    with e.loop(e.b.udiv(e.b.add(size, I64(LINE - 1)), I64(LINE))) as line:
        e.fetch(e.plus(address, line, LINE), LINE)
    e.b.ret_void()


def add_neighbours(e: Emitter, sums: list[Any], keys: int) -> None:
    """Go up the tree as far as it is known after so many keys: two vectors of as many keys each become one of both.

    Few of them wait for others at any time, so that they stay in registers.
    """
    half = LANES // 2
    while keys % 2 == 0:
        b, a = sums.pop(), sums.pop()
        starts = range(0, 2 * LANES, 2 * half)
        lower = INTS([start + i for start in starts for i in range(half)])
        upper = INTS([start + half + i for start in starts for i in range(half)])
        sums.append(e.b.fadd(e.b.shuffle_vector(a, b, lower), e.b.shuffle_vector(a, b, upper)))
        half, keys = half // 2, keys // 2


def _add_values(module: ir.Module, d_head: int, heads: int, in_bf16: bool) -> None:
    e, arguments = new_function(module, "add_values", 7)
    add_channels(e, arguments, d_head, heads, in_bf16, I64(0), d_head)
    e.b.ret_void()


def add_channels(
    e: Emitter, arguments: list[Any], width: int, heads: int, in_bf16: bool, offset: Any, count: int
) -> None:
    """The part of `add_values` for `count` of a value's `width` channels, from `offset` on."""
    weights, length, values, stride, keys, out, ahead = arguments
    rows = [e.plus(e.plus(out, head, 4 * width), offset, 4) for head in range(heads)]
    sums = [[e.variable(FLOATS) for _ in range(-(-count // LANES))] for _ in rows]
    for row, own in zip(rows, sums, strict=True):
        for total, before in zip(own, channels(e, row, count, in_bf16=False), strict=True):
            e.b.store(before, total)
    with e.loop(keys) as i:
        place = e.plus(e.b.mul(stride, i), offset, _size(1, in_bf16))
        e.fetch(e.b.add(ahead, place), _size(count, in_bf16))
        value = channels(e, e.b.add(values, place), count, in_bf16)
        for head, own in enumerate(sums):
            at = e.b.add(i, e.b.mul(length, I64(head)))
            weight = e.repeat(e.load(e.plus(weights, at, 4), F32))
            for part, total in zip(value, own, strict=True):
                e.b.store(e.fma(weight, part, e.b.load(total)), total)
    for row, own in zip(rows, sums, strict=True):
        _put(e, [e.b.load(total) for total in own], row, count)


def channels(e: Emitter, address: Any, d_head: int, in_bf16: bool) -> list[Any]:
    """A head's channels as vectors of float32, the last one filled up with zeros."""
    whole, rest, size = d_head // LANES, d_head % LANES, 2 if in_bf16 else 4
    kind = HALVES if in_bf16 else FLOATS
    found = e.vectors(address, kind, size * LANES, whole)
    if rest:
        last = ir.Constant(kind, None)
        for lane in range(rest):
            number = e.load(e.plus(address, whole * LANES + lane, size), I16 if in_bf16 else F32)
            last = e.b.insert_element(last, number, I32(lane))
        found.append(last)
    return [e.upper_half(vector) for vector in found] if in_bf16 else found


def _put(e: Emitter, vectors: list[Any], address: Any, d_head: int) -> None:
    for i, vector in enumerate(vectors):
        if (i + 1) * LANES <= d_head:
            e.store(vector, e.plus(address, i, 4 * LANES))
            continue
        for lane in range(d_head - i * LANES):
            e.store(e.b.extract_element(vector, I32(lane)), e.plus(address, i * LANES + lane, 4))
