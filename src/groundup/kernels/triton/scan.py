"""Gated linear recurrence by chunk: two kernels forward, two more backward, and no state per token anywhere.

    S_end = kept * S + (K * to_end)^T V             one chunk after the other: `_states`
    out   = (Q K^T * D) V + (Q * from_start) S      all chunks at once: `_outputs`

The first is a chain, so it does little else, and as many programs run it as there are tiles of the state. The second
has nearly all of the work, from the state that each chunk starts with.

Backward, with P = Q K^T * D the scores and a prime for the gradient of the loss:

    S'  = kept * S_end' + (Q * from_start)^T out'   one chunk before the other: `_state_gradients`
    P'  = out' V^T          V' = P^T out' + (K * to_end) S_end'
    Q'  = (P' * D) K   + (out' S^T) * from_start
    K'  = (P' * D)^T Q + (V S_end'^T) * to_end      all chunks at once: `_gradients`

Each decay is the exponential of a sum of logarithms g, so the gradient of one g is the sum of value * gradient over
all decays that it has part in: P * P' over the pairs around it, Q . Q' of the state's share for itself and later
tokens, K . K' of the state's share for earlier ones, and S * S_end' * kept.

The states that chunks start with, (d_key, d_value) floats for each of them, are not kept but computed again. One decay
per channel is left to the reference: its scores are no product of Q and K^T with something per pair of tokens.

Dao & Gu 2024, section 6 (arXiv:2405.21060); Yang et al. 2023, section 4 (arXiv:2312.06635).
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundup.kernels._chunks import CHUNK, chunk_length, initial_state
from groundup.kernels.triton._chunks import (
    LEAST,
    block_of,
    decays,
    decays_between,
    documents,
    gradient_of_decays_between,
    place_state,
    precision,
    read,
    refuses_streams,
    write,
)
from groundup.kernels.triton._support import tuned_tuple


class Blocks(NamedTuple):
    """value: channels of v that a program has at once; a tile of the state is d_key by that many in float32.
    sums: the same where the gradients of a chunk's queries and keys lie in registers beside it."""

    value: int
    sums: int
    warps: int


CANDIDATES = {
    "gated_linear": [
        {"value": value, "sums": sums, "warps": warps}
        for value, sums, warps in ((16, 16, 4), (32, 16, 4), (32, 32, 4), (32, 32, 8), (64, 32, 4), (64, 32, 8))
    ]
}


def blocks_for(d_key: int, d_value: int, element_bytes: int) -> Blocks:
    """Found by compiling for sm_90: the largest that spill nothing with bfloat16 (docs/kernels.md)."""
    wide = block_of(d_key) > 64
    most = 32 if wide or element_bytes == 4 else 64
    return Blocks(min(block_of(d_value), most), min(block_of(d_value), 16 if wide else 32), 8)


def refuses_gated_linear_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    resets: Tensor | None = None,
    chunk_size: int = CHUNK,
) -> str | None:
    if log_decay.shape[-1] > 1:
        return "the kernel takes one decay per head, and this is one per channel"
    return refuses_streams(q, k, v, log_decay, state, resets)


def gated_linear_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    resets: Tensor | None = None,
    chunk_size: int = CHUNK,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor]:
    """Chunks are of 16 tokens at least and of 64 at most: what tensor cores multiply, and what registers hold."""
    first = initial_state(k, v, state)
    size = max(LEAST, min(CHUNK, chunk_length(v.shape[1], chunk_size)))
    return _GatedLinear.apply(q, k, v, log_decay, first, resets, size, blocks)


def refuses_gated_linear_recurrent(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None, resets: Tensor | None = None
) -> str | None:
    return refuses_gated_linear_chunked(q, k, v, log_decay, state, resets)


def gated_linear_recurrent(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One chunk for what decoding has, a token or a few: the state is read once and written once."""
    return gated_linear_chunked(q, k, v, log_decay, state, resets, LEAST)


def traffic(
    batch: int, seq: int, heads: int, groups: int, d_key: int, d_value: int, element_bytes: int, *, size: int = CHUNK
) -> int:
    """Bytes from and to DRAM of a forward pass, if what programs of the same tile read again comes from the L2 cache:
    keys, values, queries and outputs, the decays, and the state of every chunk, in float32, written and read."""
    streams = seq * (3 * groups * d_key + 3 * heads * d_value) * element_bytes
    states = heads * d_key * d_value * 4 * (2 * triton.cdiv(seq, size) + 2)
    return batch * (streams + 2 * seq * heads * 4 + states)


class Streams(NamedTuple):
    """The inputs of a scan in one type, contiguous, and how its kernels are to be launched."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    resets: Tensor | None
    size: int
    block_k: int
    blocks: Blocks
    precision: str

    @property
    def chunks(self) -> int:
        return triton.cdiv(self.v.shape[1], self.size)

    @property
    def dimensions(self) -> tuple[int, ...]:
        """seq, heads, heads per group, d_key, d_value."""
        return (*self.v.shape[1:3], self.v.shape[2] // self.k.shape[2], self.k.shape[3], self.v.shape[3])

    @property
    def rows(self) -> int:
        """Heads of all rows of the batch."""
        return self.v.shape[0] * self.v.shape[2]

    @property
    def value_blocks(self) -> int:
        return triton.cdiv(self.v.shape[3], self.blocks.value)

    def new_states(self, per_row: int) -> Tensor:
        shape = (self.rows * per_row, self.k.shape[3], self.v.shape[3])
        return self.v.new_empty(shape, dtype=torch.float32)

    def launch(self, kernel: Any, grid: tuple[int, ...], *tensors: Tensor, sums: bool = False) -> None:
        """Every kernel of a scan: its tensors, the resets, the sizes. sums: it keeps two gradients in registers."""
        if self.v.numel():
            resets = self.g if self.resets is None else self.resets
            kernel[grid](
                *tensors, resets, *self.dimensions, SIZE=self.size, RESETS=self.resets is not None,
                BLOCK_K=self.block_k, BLOCK_V=self.blocks.sums if sums else self.blocks.value,
                PRECISION=self.precision, num_warps=self.blocks.warps, num_stages=1 if sums else 2,
            )  # fmt: skip


def streams_of(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, resets: Tensor | None, size: int, blocks: Blocks | None,
    launcher: str = "gated_linear",
) -> Streams:  # fmt: skip
    """Products are of the widest type among q, k and v: Mamba's v = dt x is float32 beside bfloat16 keys."""
    half = any(x.element_size() == 2 for x in (q, k, v))
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    q, k, v = (x.to(dtype).contiguous() for x in (q, k, v))
    if blocks is None:
        default = blocks_for(k.shape[3], v.shape[3], v.element_size())
        blocks = tuned_tuple(launcher, (dtype, k.shape[3], v.shape[3]), default)
    resets = None if resets is None else resets.contiguous().view(torch.uint8)
    return Streams(q, k, v, g.contiguous(), resets, size, block_of(k.shape[3]), blocks, precision(half))


def states_of(streams: Streams, initial: Tensor) -> tuple[Tensor, Tensor]:
    """The state that each chunk starts with, and the last one."""
    starts, last = streams.new_states(streams.chunks), torch.empty_like(initial)
    grid = (streams.rows, streams.value_blocks)
    streams.launch(_states, grid, streams.k, streams.v, streams.g, initial, starts, last)
    return starts, last


def outputs_of(streams: Streams, starts: Tensor, out: Tensor) -> Tensor:
    grid = (streams.rows * streams.chunks, streams.value_blocks)
    streams.launch(_outputs, grid, streams.q, streams.k, streams.v, streams.g, starts, out)
    return out


def gradients_of(streams: Streams, dout: Tensor, starts: Tensor, dends: Tensor) -> tuple[Tensor, ...]:
    """Of q, k (in float32, one of each head), v and g, given the gradients of the states that chunks end with."""
    shape = (*streams.v.shape[:3], streams.k.shape[3])
    dq, dk = (streams.v.new_empty(shape, dtype=torch.float32) for _ in range(2))
    dv, dg = torch.empty_like(streams.v), torch.empty_like(streams.g, dtype=torch.float32)
    inputs = (streams.q, streams.k, streams.v, streams.g, dout, starts, dends)
    streams.launch(_gradients, (streams.rows * streams.chunks,), *inputs, dq, dk, dv, dg, sums=True)
    return dq, dk, dv, dg


def per_group(gradient: Tensor, like: Tensor) -> Tensor:
    """Keys that several heads share get the sum of their gradients."""
    return gradient.unflatten(2, (like.shape[2], -1)).sum(3).to(like.dtype)


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial: Tensor, resets: Tensor | None, size: int,
        blocks: Blocks | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.save_for_backward(q, k, v, g, initial, *([] if resets is None else [resets]))
        ctx.size, ctx.blocks = size, blocks
        streams = streams_of(q, k, v, g, resets, size, blocks)
        starts, last = states_of(streams, initial.contiguous())
        return outputs_of(streams, starts, torch.empty_like(v, memory_format=torch.contiguous_format)), last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, g, initial, *resets = ctx.saved_tensors
        streams = streams_of(q, k, v, g, resets[0] if resets else None, ctx.size, ctx.blocks)
        dout, dlast = upstream[0].to(streams.v.dtype).contiguous(), upstream[1].contiguous()
        starts, _ = states_of(streams, initial.contiguous())
        dends, dinitial = streams.new_states(streams.chunks), torch.empty_like(dlast)
        grid = (streams.rows, streams.value_blocks)
        streams.launch(_state_gradients, grid, streams.q, streams.g, dout, dlast, dends, dinitial)
        dq, dk, dv, dg = gradients_of(streams, dout, starts, dends)
        return per_group(dq, q), per_group(dk, k), dv.to(v.dtype), dg.to(g.dtype), dinitial, None, None, None


@triton.jit
def _states(
    k, v, g, initial, starts, last, resets, seq, heads, share, d_key, d_value,
    SIZE: tl.constexpr, RESETS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    index, value = tl.program_id(0), tl.program_id(1) * BLOCK_V
    row, head, chunks = index // heads, index % heads, tl.cdiv(seq, SIZE)
    where, exists = place_state(initial, index, d_key, d_value, 0, value, BLOCK_K, BLOCK_V)
    state = tl.load(where, mask=exists, other=0.0).to(tl.float32)
    for chunk in range(0, chunks):
        first = chunk * SIZE
        where, exists = place_state(starts, index * chunks + chunk, d_key, d_value, 0, value, BLOCK_K, BLOCK_V)
        tl.store(where, state, mask=exists)
        document = documents(resets, row, first, seq, RESETS, SIZE)
        _, to_end, kept = decays(g, document, row, first, head, seq, heads, SIZE)
        keys = read(k, row, first, head // share, seq, heads // share, d_key, 0, SIZE, BLOCK_K)
        values = read(v, row, first, head, seq, heads, d_value, value, SIZE, BLOCK_V)
        keys = (keys * to_end).to(values.dtype)
        state = tl.dot(tl.trans(keys), values, kept[:, None] * state, input_precision=PRECISION)
    where, exists = place_state(last, index, d_key, d_value, 0, value, BLOCK_K, BLOCK_V)
    tl.store(where, state, mask=exists)


@triton.jit
def _outputs(
    q, k, v, g, starts, out, resets, seq, heads, share, d_key, d_value,
    SIZE: tl.constexpr, RESETS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    chunks, value = tl.cdiv(seq, SIZE), tl.program_id(1) * BLOCK_V
    index, first = tl.program_id(0) // chunks, (tl.program_id(0) % chunks) * SIZE
    row, head, group, groups = index // heads, index % heads, index % heads // share, heads // share
    document = documents(resets, row, first, seq, RESETS, SIZE)
    queries = read(q, row, first, group, seq, groups, d_key, 0, SIZE, BLOCK_K)
    keys = read(k, row, first, group, seq, groups, d_key, 0, SIZE, BLOCK_K)
    values = read(v, row, first, head, seq, heads, d_value, value, SIZE, BLOCK_V)
    scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
    scores *= decays_between(g, document, row, first, head, seq, heads, SIZE)
    total = tl.dot(scores.to(values.dtype), values, input_precision=PRECISION)
    from_start, _, _ = decays(g, document, row, first, head, seq, heads, SIZE)
    where, exists = place_state(starts, tl.program_id(0), d_key, d_value, 0, value, BLOCK_K, BLOCK_V)
    state = tl.load(where, mask=exists, other=0.0).to(values.dtype)
    total = tl.dot((queries * from_start).to(values.dtype), state, total, input_precision=PRECISION)
    write(out, total, row, first, head, seq, heads, d_value, value, SIZE, BLOCK_V)


@triton.jit
def _state_gradients(
    q, g, dout, dlast, dends, dinitial, resets, seq, heads, share, d_key, d_value,
    SIZE: tl.constexpr, RESETS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    index, value = tl.program_id(0), tl.program_id(1) * BLOCK_V
    row, head, chunks = index // heads, index % heads, tl.cdiv(seq, SIZE)
    where, exists = place_state(dlast, index, d_key, d_value, 0, value, BLOCK_K, BLOCK_V)
    dstate = tl.load(where, mask=exists, other=0.0)
    for back in range(0, chunks):
        chunk = chunks - 1 - back
        first = chunk * SIZE
        where, exists = place_state(dends, index * chunks + chunk, d_key, d_value, 0, value, BLOCK_K, BLOCK_V)
        tl.store(where, dstate, mask=exists)
        document = documents(resets, row, first, seq, RESETS, SIZE)
        from_start, _, kept = decays(g, document, row, first, head, seq, heads, SIZE)
        queries = read(q, row, first, head // share, seq, heads // share, d_key, 0, SIZE, BLOCK_K)
        upstream = read(dout, row, first, head, seq, heads, d_value, value, SIZE, BLOCK_V)
        queries = (queries * from_start).to(upstream.dtype)
        dstate = tl.dot(tl.trans(queries), upstream, kept[:, None] * dstate, input_precision=PRECISION)
    where, exists = place_state(dinitial, index, d_key, d_value, 0, value, BLOCK_K, BLOCK_V)
    tl.store(where, dstate, mask=exists)


@triton.jit
def _gradients(
    q, k, v, g, dout, starts, dends, dq, dk, dv, dg, resets, seq, heads, share, d_key, d_value,
    SIZE: tl.constexpr, RESETS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    chunks = tl.cdiv(seq, SIZE)
    index, first = tl.program_id(0) // chunks, (tl.program_id(0) % chunks) * SIZE
    row, head, group, groups = index // heads, index % heads, index % heads // share, heads // share
    document = documents(resets, row, first, seq, RESETS, SIZE)
    queries = read(q, row, first, group, seq, groups, d_key, 0, SIZE, BLOCK_K)
    keys = read(k, row, first, group, seq, groups, d_key, 0, SIZE, BLOCK_K)
    _, to_end, _ = decays(g, document, row, first, head, seq, heads, SIZE)
    scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
    scores = (scores * decays_between(g, document, row, first, head, seq, heads, SIZE)).to(keys.dtype)
    keys_to_end = (keys * to_end).to(keys.dtype)

    dscores = tl.zeros((SIZE, SIZE), tl.float32)
    dqueries, dkeys = tl.zeros((SIZE, BLOCK_K), tl.float32), tl.zeros((SIZE, BLOCK_K), tl.float32)
    dkept = tl.zeros((BLOCK_K,), tl.float32)
    for value in range(0, d_value, BLOCK_V):
        values = read(v, row, first, head, seq, heads, d_value, value, SIZE, BLOCK_V)
        upstream = read(dout, row, first, head, seq, heads, d_value, value, SIZE, BLOCK_V)
        where, exists = place_state(starts, tl.program_id(0), d_key, d_value, 0, value, BLOCK_K, BLOCK_V)
        state = tl.load(where, mask=exists, other=0.0)
        where, exists = place_state(dends, tl.program_id(0), d_key, d_value, 0, value, BLOCK_K, BLOCK_V)
        dstate = tl.load(where, mask=exists, other=0.0)
        dkept += tl.sum(state * dstate, 1)
        state, dstate = state.to(values.dtype), dstate.to(values.dtype)
        dscores = tl.dot(upstream, tl.trans(values), dscores, input_precision=PRECISION)
        dqueries = tl.dot(upstream, tl.trans(state), dqueries, input_precision=PRECISION)
        dkeys = tl.dot(values, tl.trans(dstate), dkeys, input_precision=PRECISION)
        dvalues = tl.dot(tl.trans(scores), upstream, input_precision=PRECISION)
        dvalues = tl.dot(keys_to_end, dstate, dvalues, input_precision=PRECISION)
        write(dv, dvalues, row, first, head, seq, heads, d_value, value, SIZE, BLOCK_V)

    # Read and computed once more: kept through the loop, these would not leave registers enough for its sums.
    queries = read(q, row, first, group, seq, groups, d_key, 0, SIZE, BLOCK_K)
    keys = read(k, row, first, group, seq, groups, d_key, 0, SIZE, BLOCK_K)
    document = documents(resets, row, first, seq, RESETS, SIZE)
    from_start, to_end, kept = decays(g, document, row, first, head, seq, heads, SIZE)
    dqueries, dkeys = dqueries * from_start, dkeys * to_end
    after = tl.sum(dkeys * keys, 1)
    dlog = tl.cumsum(tl.sum(dqueries * queries, 1), 0, reverse=True) + tl.cumsum(after, 0) - after
    pairs = dscores * decays_between(g, document, row, first, head, seq, heads, SIZE)
    products = pairs * tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
    dlog += gradient_of_decays_between(products, SIZE) + tl.sum(dkept, 0) * tl.sum(kept, 0)
    pairs = pairs.to(keys.dtype)
    dqueries = tl.dot(pairs, keys, dqueries, input_precision=PRECISION)
    dkeys = tl.dot(tl.trans(pairs), queries, dkeys, input_precision=PRECISION)
    write(dq, dqueries, row, first, head, seq, heads, d_key, 0, SIZE, BLOCK_K)
    write(dk, dkeys, row, first, head, seq, heads, d_key, 0, SIZE, BLOCK_K)
    write(dg, dlog[:, None], row, first, head, seq, heads, 1, 0, SIZE, 1)
