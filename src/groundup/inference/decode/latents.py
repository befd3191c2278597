"""The inner loops of latent attention: 16 latents of a page at once against the queries of several heads.

A latent is wide, and key and value of all heads. So a block of four heads and four latents is a small matrix product:

    16 channels of      latent 0   1   2   3            16 registers of sums, each for one head and latent, whose lanes
    query of head 0       *        *   *   *            are added up as in `heads`; channels go by in a loop, as a
    query of head 1       *        *   *   *            latent has more of them than there are registers
    ...
"""

from functools import cache
from typing import Any

from llvmlite import ir

from groundup.inference.decode.heads import KEYS, add_channels, add_neighbours, channels
from groundup.native.emit import FLOATS, I64, LANES, addresses, new_function, new_module

HEADS, LATENTS = 4, 4
CHANNELS = 4 * LANES
"""Of the values that are added up at once, in registers."""


def heads_at_once(heads: int) -> int:
    """Query heads that are done together: a divisor of their number."""
    return max(n for n in range(1, HEADS + 1) if heads % n == 0)


@cache
def latent_loops(width: int, heads: int, in_bf16: bool) -> tuple[int, int]:
    """Addresses of `scores` and `add_values`, for so many query heads at once; arguments as in `heads.head_loops`.

    Here `scores` adds to the scores that are there.
    """
    module = new_module(f"latents_{width}_{heads}_{in_bf16}")
    _Loops(module, "scores", 6, width, heads, in_bf16).scores()
    _Loops(module, "add_values", 7, width, heads, in_bf16).add_values()
    found = addresses(module)
    return found["scores"], found["add_values"]


class _Loops:
    """One function: latents of `width` channels, for so many heads."""

    def __init__(self, module: ir.Module, name: str, arguments: int, width: int, heads: int, in_bf16: bool) -> None:
        self.e, self.arguments = new_function(module, name, arguments)
        self.width, self.heads, self.in_bf16, self.size = width, heads, in_bf16, 2 if in_bf16 else 4

    def scores(self) -> None:
        e, (queries, keys, stride, scores, length, ahead) = self.e, self.arguments
        partial: list[list[Any]] = [[] for _ in range(self.heads)]
        for first in range(0, KEYS, LATENTS):
            places = [e.b.mul(stride, I64(first + i)) for i in range(LATENTS)]
            totals = self._totals(queries, [e.b.add(keys, p) for p in places], [e.b.add(ahead, p) for p in places])
            for i in range(LATENTS):
                for sums, own in zip(partial, totals, strict=True):
                    sums.append(e.b.load(own[i]))
                    add_neighbours(e, sums, first + i + 1)
        for head, (sums,) in enumerate(partial):
            place = e.plus(scores, e.b.mul(I64(head), length), 4)
            e.store(e.b.fadd(e.load(place, FLOATS), sums), place)
        e.b.ret_void()

    def _totals(self, queries: Any, keys: list[Any], ahead: list[Any]) -> list[list[Any]]:
        """By head and latent, 16 partial sums of their product; what lies `ahead` is asked for meanwhile."""
        e = self.e
        totals = [[e.variable(FLOATS) for _ in keys] for _ in range(self.heads)]
        if self.width >= LANES:
            with e.loop(I64(self.width // LANES)) as i:
                offset = e.b.mul(i, I64(LANES))
                for place in ahead:
                    e.fetch(e.plus(place, offset, self.size), self.size * LANES)
                self._add_products(totals, queries, keys, offset, LANES)
        if self.width % LANES:
            self._add_products(totals, queries, keys, I64(self.width // LANES * LANES), self.width % LANES)
        return totals

    def _add_products(self, totals: list[list[Any]], queries: Any, keys: list[Any], offset: Any, count: int) -> None:
        """Of up to 16 channels from `offset` on."""
        e = self.e
        latents = [channels(e, e.plus(key, offset, self.size), count, self.in_bf16)[0] for key in keys]
        for head, own in enumerate(totals):
            place = e.plus(e.plus(queries, head, 4 * self.width), offset, 4)
            (query,) = channels(e, place, count, in_bf16=False)
            for total, latent in zip(own, latents, strict=True):
                e.b.store(e.fma(query, latent, e.b.load(total)), total)

    def add_values(self) -> None:
        e, whole, rest = self.e, self.width // CHANNELS, self.width % CHANNELS
        shape = (self.width, self.heads, self.in_bf16)
        if whole:
            with e.loop(I64(whole)) as i:
                add_channels(e, self.arguments, *shape, e.b.mul(i, I64(CHANNELS)), CHANNELS)
        if rest:
            add_channels(e, self.arguments, *shape, I64(whole * CHANNELS), rest)
        e.b.ret_void()
