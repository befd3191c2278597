"""What the recurrences' kernels share: a tile of a stream, where its documents begin, and what decays do in a chunk.

Streams are (batch, seq, heads, width) and contiguous. A program has `SIZE` consecutive tokens, a chunk, of one head of
one row of the batch. As in `kernels/_chunks.py`, no exponent here is a difference of running sums: each is a sum of
logarithms over the tokens between two places. So nothing overflows, and a decay to zero (minus infinity) is one.

Decays are one per head: their tiles are (SIZE, 1) and broadcast.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from groundup.kernels._compiler import constant
from groundup.kernels.triton._support import refuses_device

LEAST = 16
"""Of every side of a product: what tensor cores multiply at once."""

MOST_CHANNELS = 128
"""Of keys: the gradients of a chunk's queries and keys are held in registers as a whole."""


def refuses_streams(q: Tensor, k: Tensor, v: Tensor, *others: Tensor | None) -> str | None:
    if k.shape[-1] > MOST_CHANNELS:
        return f"the kernel holds keys of at most {MOST_CHANNELS} channels, and these have {k.shape[-1]}"
    return refuses_device(q, k, v, *others)


@constant
def precision(half: bool) -> str:
    """How products of float32 are computed.

    Where some input was of 16 bits, TF32, which rounds less than that input was rounded (11 bits; bfloat16 has 8, and
    float16 the same 11). Otherwise as torch computes its own products of float32.
    """
    return "ieee" if not half and torch.get_float32_matmul_precision() == "highest" else "tf32"


def block_of(channels: int) -> int:
    return max(LEAST, triton.next_power_of_2(channels))


@triton.jit
def place(x, row, first, head, seq, heads, width, begin, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Addresses of x[row, first : first + SIZE, head, begin : begin + BLOCK], and which of them exist."""
    token = first + tl.arange(0, SIZE)
    channel = begin + tl.arange(0, BLOCK)
    offset = ((row.to(tl.int64) * seq + token[:, None]) * heads + head) * width + channel[None, :]
    return x + offset, (token < seq)[:, None] & (channel < width)[None, :]


@triton.jit
def read(x, row, first, head, seq, heads, width, begin, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """That tile, with zeros for what does not exist: such tokens change no state."""
    where, exists = place(x, row, first, head, seq, heads, width, begin, SIZE, BLOCK)
    return tl.load(where, mask=exists, other=0.0)


@triton.jit
def write(x, tile, row, first, head, seq, heads, width, begin, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    where, exists = place(x, row, first, head, seq, heads, width, begin, SIZE, BLOCK)
    tl.store(where, tile.to(x.dtype.element_ty), mask=exists)


@triton.jit
def place_state(x, index, d_key, d_value, key, value, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr):
    """Addresses of a tile of the state x[index], (d_key, d_value), and which of them exist."""
    channel, column = key + tl.arange(0, BLOCK_K), value + tl.arange(0, BLOCK_V)
    offset = (index.to(tl.int64) * d_key + channel[:, None]) * d_value + column[None, :]
    return x + offset, (channel < d_key)[:, None] & (column < d_value)[None, :]


@triton.jit
def documents(resets, row, first, seq, RESETS: tl.constexpr, SIZE: tl.constexpr):
    """How many documents began in the chunk, up to each token; 0 is the one that came in with the state."""
    token = first + tl.arange(0, SIZE)
    begun = tl.zeros((SIZE,), tl.int32)
    if RESETS:
        begun = tl.load(resets + row.to(tl.int64) * seq + token, mask=token < seq, other=0).to(tl.int32)
    return tl.cumsum(begun, 0)


@triton.jit
def decays(g, document, row, first, head, seq, heads, SIZE: tl.constexpr):
    """What is left of the chunk's incoming state at each token, of each token in its outgoing state, and of the one in
    the other: (SIZE, 1) twice and (1,). All are 0 across a reset."""
    # Sums of a masked square: a running sum along a tile of one column is more than Triton 3.6 compiles.
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    token = first + tl.arange(0, SIZE)
    own = tl.load(g + (row.to(tl.int64) * seq + token) * heads + head, mask=token < seq, other=0.0).to(tl.float32)
    newest = tl.max(document, 0)
    from_start = tl.exp(tl.sum(tl.where(i >= j, own[None, :], 0.0), 1))
    to_end = tl.exp(tl.sum(tl.where(i < j, own[None, :], 0.0), 1))
    from_start = tl.where(document == 0, from_start, 0.0)
    to_end = tl.where(document == newest, to_end, 0.0)
    kept = tl.zeros((1,), tl.float32) + tl.where(newest == 0, tl.exp(tl.sum(own, 0)), 0.0)
    return from_start[:, None], to_end[:, None], kept


@triton.jit
def decays_between(g, document, row, first, head, seq, heads, SIZE: tl.constexpr):
    """exp(sum of g over the tokens after j up to i) at (i, j), for one decay per head; zero above the diagonal and
    between documents."""
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    own = read(g, row, first, head, seq, heads, 1, 0, SIZE, 1).to(tl.float32)
    between = tl.exp(tl.cumsum(tl.where(i > j, own, 0.0), 0))
    return tl.where((i >= j) & (document[:, None] == document[None, :]), between, 0.0)


@triton.jit
def gradient_of_decays_between(product, SIZE: tl.constexpr):
    """Of g, from decay * its gradient at each (i, j): the sum over the pairs with token t between them, j < t <= i.

    From the sum of each column upwards from row t, those entries that are before token t.
    """
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    from_here_on = tl.cumsum(tl.where(i > j, product, 0.0), 0, reverse=True)
    return tl.sum(tl.where(i > j, from_here_on, 0.0), 1)
