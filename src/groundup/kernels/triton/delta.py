"""Gated delta rule by chunk: corrections u take the place of v, then it is a gated linear recurrence.

The corrections of a chunk that starts at state S solve A u = beta (v - from_start (K S)), where A is the identity and,
below its diagonal, beta_i (k_i . k_j) D_ij. So u = U - W S with U = A^-1 beta v and W = A^-1 beta from_start K:

    A^-1, U, W                                      all chunks at once: `_solve`
    u = U - W S,  S_end = kept S + (K to_end)^T u    one chunk after the other: `_correct`
    out from Q, K, u and S                          all chunks at once: `scan._outputs`

A^-1 is found by elimination, column after column. A product of powers of A - 1 would be matrix products only, but the
powers of a chunk of similar keys grow like binomial coefficients and cancel: of 64 equal ones nothing would be left.

Backward, with a prime for the gradient of the loss, first the states' gradients as far as they are a chain,

    u' = P^T out' + (K to_end) S_end'           its first part all chunks at once: `_local_gradients`
    S' = kept S_end' + (Q from_start)^T out' - W^T u'       one chunk before the other: `_state_gradients`

then those of the linear recurrence on u (`scan._gradients`), and through the system: with e = A^-T u', the gradient of
its right side is e, and of A it is - e u^T below the diagonal, since A u = right side (`_system_gradients`):

    v' = beta e          (K S)' = - beta from_start e          beta' = e . (v - from_start (K S)) + what A' gives.

A^-1, W, u and the states are not kept but computed again. Yang et al. 2024, section 3.3 (arXiv:2412.06464); the
representation is that of Bischof & Van Loan 1987 for products of reflections.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundup.kernels._chunks import CHUNK, chunk_length, initial_state
from groundup.kernels.triton import scan
from groundup.kernels.triton._chunks import (
    LEAST,
    decays,
    decays_between,
    documents,
    gradient_of_decays_between,
    place_state,
    read,
    refuses_streams,
    write,
)
from groundup.kernels.triton.scan import Blocks, Streams

LAUNCHER = "gated_delta"
CANDIDATES = {LAUNCHER: scan.CANDIDATES["gated_linear"]}


def refuses_gated_delta_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
    resets: Tensor | None = None,
    chunk_size: int = CHUNK,
) -> str | None:
    return refuses_streams(q, k, v, log_decay, beta, state, resets)


def gated_delta_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
    resets: Tensor | None = None,
    chunk_size: int = CHUNK,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor]:
    """Chunks are of 16 tokens at least and of 64 at most, as in `scan`."""
    first = initial_state(k, v, state)
    size = max(LEAST, min(CHUNK, chunk_length(v.shape[1], chunk_size)))
    return _GatedDelta.apply(q, k, v, log_decay, beta, first, resets, size, blocks)


def refuses_gated_delta_recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
    resets: Tensor | None = None,
) -> str | None:
    return refuses_streams(q, k, v, log_decay, beta, state, resets)


def gated_delta_recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One chunk for what decoding has, a token or a few: the state is read once and written once."""
    return gated_delta_chunked(q, k, v, log_decay, beta, state, resets, LEAST)


def traffic(
    batch: int, seq: int, heads: int, groups: int, d_key: int, d_value: int, element_bytes: int, *, size: int = CHUNK
) -> int:
    """Bytes from and to DRAM of a forward pass: that of the scan, and U, W and u written and read."""
    through_memory = heads * (4 * d_value + 2 * d_key) * element_bytes
    return scan.traffic(batch, seq, heads, groups, d_key, d_value, element_bytes, size=size) + (
        batch * seq * through_memory
    )


class _GatedDelta(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial: Tensor, resets: Tensor | None,
        size: int, blocks: Blocks | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.save_for_backward(q, k, v, g, beta, initial, *([] if resets is None else [resets]))
        ctx.size, ctx.blocks = size, blocks
        streams = scan.streams_of(q, k, v, g[..., None], resets, size, blocks, LAUNCHER)
        corrected, starts, last, _, _ = _corrections(streams, beta.contiguous(), initial.contiguous())
        out = torch.empty_like(v, memory_format=torch.contiguous_format)
        return scan.outputs_of(corrected, starts, out), last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, g, beta, initial, *resets = ctx.saved_tensors
        streams = scan.streams_of(q, k, v, g[..., None], resets[0] if resets else None, ctx.size, ctx.blocks, LAUNCHER)
        beta_, dout, dlast = beta.contiguous(), upstream[0].to(streams.v.dtype).contiguous(), upstream[1].contiguous()
        corrected, starts, _, inverse, w = _corrections(streams, beta_, initial.contiguous())
        dends, dinitial = _state_gradients_of(corrected, w, dout, dlast)
        dq, dk, du, dg = scan.gradients_of(corrected, dout, starts, dends)
        dv, dbeta = torch.empty_like(streams.v), torch.empty_like(beta_, dtype=torch.float32)
        grid = (streams.rows * streams.chunks,)
        inputs = (streams.k, streams.v, streams.g, beta_, inverse, corrected.v, starts, du)
        streams.launch(_system_gradients, grid, *inputs, dk, dg, dv, dbeta, sums=True)
        dq, dk = scan.per_group(dq, q), scan.per_group(dk, k)
        return dq, dk, dv.to(v.dtype), dg[..., 0].to(g.dtype), dbeta.to(beta.dtype), dinitial, None, None, None


def _corrections(streams: Streams, beta: Tensor, initial: Tensor) -> tuple[Streams, Tensor, Tensor, Tensor, Tensor]:
    """The streams with u for v, the state each chunk starts with, the last one, A^-1 and W."""
    u, w = torch.empty_like(streams.v), streams.v.new_empty(*streams.v.shape[:3], streams.k.shape[3])
    inverse = streams.v.new_empty(streams.rows * streams.chunks, streams.size, streams.size, dtype=torch.float32)
    inputs = (streams.k, streams.v, streams.g, beta)
    streams.launch(_solve, (streams.rows * streams.chunks,), *inputs, inverse, u, w)
    starts, last = streams.new_states(streams.chunks), torch.empty_like(initial)
    grid = (streams.rows, streams.value_blocks)
    streams.launch(_correct, grid, streams.k, streams.g, initial, w, u, starts, last)
    return streams._replace(v=u), starts, last, inverse, w


def _state_gradients_of(streams: Streams, w: Tensor, dout: Tensor, dlast: Tensor) -> tuple[Tensor, Tensor]:
    du = torch.empty_like(dout)
    grid = (streams.rows * streams.chunks, streams.value_blocks)
    streams.launch(_local_gradients, grid, streams.q, streams.k, streams.g, dout, du)
    dends, dinitial = streams.new_states(streams.chunks), torch.empty_like(dlast)
    inputs = (streams.q, streams.k, streams.g, w, dout, du, dlast)
    streams.launch(_state_gradients, (streams.rows, streams.value_blocks), *inputs, dends, dinitial)
    return dends, dinitial


@triton.jit
def _strength(beta, row, first, head, seq, heads, SIZE: tl.constexpr):
    """beta of a chunk's tokens, (SIZE, 1)."""
    return read(beta, row, first, head, seq, heads, 1, 0, SIZE, 1).to(tl.float32)


@triton.jit
def _place_inverse(inverse, SIZE: tl.constexpr):
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    return inverse + (tl.program_id(0).to(tl.int64) * SIZE + i) * SIZE + j


@triton.jit
def _inverted(below, SIZE: tl.constexpr):
    """(1 + below)^-1 of a strictly lower triangular matrix: its column j times row j of the result so far, subtracted
    from the rows under j, for one j after the other."""
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    inverse = tl.where(i == j, 1.0, 0.0)
    for step in range(0, SIZE):
        column = tl.sum(tl.where(j == step, below, 0.0), 1)
        inverse -= column[:, None] * tl.sum(tl.where(i == step, inverse, 0.0), 0)[None, :]
    return inverse


@triton.jit
def _solve(
    k, v, g, beta, inverse, u, w, resets, seq, heads, share, d_key, d_value,
    SIZE: tl.constexpr, RESETS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    chunks = tl.cdiv(seq, SIZE)
    index, first = tl.program_id(0) // chunks, (tl.program_id(0) % chunks) * SIZE
    row, head = index // heads, index % heads
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    document = documents(resets, row, first, seq, RESETS, SIZE)
    keys = read(k, row, first, head // share, seq, heads // share, d_key, 0, SIZE, BLOCK_K)
    strength = _strength(beta, row, first, head, seq, heads, SIZE)
    below = tl.dot(keys, tl.trans(keys), input_precision=PRECISION) * strength
    below *= decays_between(g, document, row, first, head, seq, heads, SIZE)
    found = _inverted(tl.where(i > j, below, 0.0), SIZE)
    tl.store(_place_inverse(inverse, SIZE), found)
    from_start, _, _ = decays(g, document, row, first, head, seq, heads, SIZE)
    reads = tl.dot(found, keys * from_start * strength, input_precision=PRECISION)
    write(w, reads, row, first, head, seq, heads, d_key, 0, SIZE, BLOCK_K)
    for value in range(0, d_value, BLOCK_V):
        values = read(v, row, first, head, seq, heads, d_value, value, SIZE, BLOCK_V)
        solved = tl.dot(found, values * strength, input_precision=PRECISION)
        write(u, solved, row, first, head, seq, heads, d_value, value, SIZE, BLOCK_V)


@triton.jit
def _correct(
    k, g, initial, w, u, starts, last, resets, seq, heads, share, d_key, d_value,
    SIZE: tl.constexpr, RESETS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`scan._states`, with u - W S, written over u, for the values."""
    index, value = tl.program_id(0), tl.program_id(1) * BLOCK_V
    row, head, chunks = index // heads, index % heads, tl.cdiv(seq, SIZE)
    where, exists = place_state(initial, index, d_key, d_value, 0, value, BLOCK_K, BLOCK_V)
    state = tl.load(where, mask=exists, other=0.0).to(tl.float32)
    for chunk in range(0, chunks):
        first = chunk * SIZE
        where, exists = place_state(starts, index * chunks + chunk, d_key, d_value, 0, value, BLOCK_K, BLOCK_V)
        tl.store(where, state, mask=exists)
        reads = read(w, row, first, head, seq, heads, d_key, 0, SIZE, BLOCK_K)
        values = read(u, row, first, head, seq, heads, d_value, value, SIZE, BLOCK_V)
        values -= tl.dot(reads, state.to(reads.dtype), input_precision=PRECISION)
        values = values.to(reads.dtype)
        write(u, values, row, first, head, seq, heads, d_value, value, SIZE, BLOCK_V)
        document = documents(resets, row, first, seq, RESETS, SIZE)
        _, to_end, kept = decays(g, document, row, first, head, seq, heads, SIZE)
        keys = read(k, row, first, head // share, seq, heads // share, d_key, 0, SIZE, BLOCK_K)
        keys = (keys * to_end).to(values.dtype)
        state = tl.dot(tl.trans(keys), values, kept[:, None] * state, input_precision=PRECISION)
    where, exists = place_state(last, index, d_key, d_value, 0, value, BLOCK_K, BLOCK_V)
    tl.store(where, state, mask=exists)


@triton.jit
def _local_gradients(
    q, k, g, dout, du, resets, seq, heads, share, d_key, d_value,
    SIZE: tl.constexpr, RESETS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P^T out': what the outputs of a chunk tell its own corrections."""
    chunks, value = tl.cdiv(seq, SIZE), tl.program_id(1) * BLOCK_V
    index, first = tl.program_id(0) // chunks, (tl.program_id(0) % chunks) * SIZE
    row, head, group, groups = index // heads, index % heads, index % heads // share, heads // share
    document = documents(resets, row, first, seq, RESETS, SIZE)
    queries = read(q, row, first, group, seq, groups, d_key, 0, SIZE, BLOCK_K)
    keys = read(k, row, first, group, seq, groups, d_key, 0, SIZE, BLOCK_K)
    scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
    scores *= decays_between(g, document, row, first, head, seq, heads, SIZE)
    upstream = read(dout, row, first, head, seq, heads, d_value, value, SIZE, BLOCK_V)
    dvalues = tl.dot(tl.trans(scores.to(upstream.dtype)), upstream, input_precision=PRECISION)
    write(du, dvalues, row, first, head, seq, heads, d_value, value, SIZE, BLOCK_V)


@triton.jit
def _state_gradients(
    q, k, g, w, dout, du, dlast, dends, dinitial, resets, seq, heads, share, d_key, d_value,
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
        from_start, to_end, kept = decays(g, document, row, first, head, seq, heads, SIZE)
        keys = read(k, row, first, head // share, seq, heads // share, d_key, 0, SIZE, BLOCK_K)
        queries = read(q, row, first, head // share, seq, heads // share, d_key, 0, SIZE, BLOCK_K)
        upstream = read(dout, row, first, head, seq, heads, d_value, value, SIZE, BLOCK_V)
        dvalues = read(du, row, first, head, seq, heads, d_value, value, SIZE, BLOCK_V).to(tl.float32)
        keys = (keys * to_end).to(upstream.dtype)
        dvalues = tl.dot(keys, dstate.to(keys.dtype), dvalues, input_precision=PRECISION)
        queries = (queries * from_start).to(upstream.dtype)
        dstate = tl.dot(tl.trans(queries), upstream, kept[:, None] * dstate, input_precision=PRECISION)
        reads = read(w, row, first, head, seq, heads, d_key, 0, SIZE, BLOCK_K)
        dstate = tl.dot(tl.trans(reads), (-dvalues).to(reads.dtype), dstate, input_precision=PRECISION)
    where, exists = place_state(dinitial, index, d_key, d_value, 0, value, BLOCK_K, BLOCK_V)
    tl.store(where, dstate, mask=exists)


@triton.jit
def _system_gradients(
    k, v, g, beta, inverse, u, starts, du, dk, dg, dv, dbeta, resets, seq, heads, share, d_key, d_value,
    SIZE: tl.constexpr, RESETS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds to the gradients of k and g, and writes those of v and beta."""
    chunks = tl.cdiv(seq, SIZE)
    index, first = tl.program_id(0) // chunks, (tl.program_id(0) % chunks) * SIZE
    row, head = index // heads, index % heads
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    document = documents(resets, row, first, seq, RESETS, SIZE)
    from_start, _, _ = decays(g, document, row, first, head, seq, heads, SIZE)
    keys = read(k, row, first, head // share, seq, heads // share, d_key, 0, SIZE, BLOCK_K)
    strength = _strength(beta, row, first, head, seq, heads, SIZE)
    found = tl.load(_place_inverse(inverse, SIZE))

    dsystem = tl.zeros((SIZE, SIZE), tl.float32)
    dkeys = tl.zeros((SIZE, BLOCK_K), tl.float32)
    dstrength, dfrom_start = tl.zeros((SIZE,), tl.float32), tl.zeros((SIZE,), tl.float32)
    for value in range(0, d_value, BLOCK_V):
        where, exists = place_state(starts, tl.program_id(0), d_key, d_value, 0, value, BLOCK_K, BLOCK_V)
        state = tl.load(where, mask=exists, other=0.0).to(keys.dtype)
        upstream = read(du, row, first, head, seq, heads, d_value, value, SIZE, BLOCK_V).to(tl.float32)
        e = tl.dot(tl.trans(found), upstream, input_precision=PRECISION)
        stored = tl.dot(keys, state, input_precision=PRECISION) * from_start
        wanted = read(v, row, first, head, seq, heads, d_value, value, SIZE, BLOCK_V) - stored
        dstrength += tl.sum(e * wanted, 1)
        corrections = read(u, row, first, head, seq, heads, d_value, value, SIZE, BLOCK_V)
        dsystem = tl.dot((-e).to(keys.dtype), tl.trans(corrections), dsystem, input_precision=PRECISION)
        e *= strength
        write(dv, e, row, first, head, seq, heads, d_value, value, SIZE, BLOCK_V)
        dfrom_start -= tl.sum(e * stored, 1)
        dkeys = tl.dot((-e).to(keys.dtype), tl.trans(state), dkeys, input_precision=PRECISION)

    # Read and computed once more, as in the scan: registers are for the sums of the loop.
    keys = read(k, row, first, head // share, seq, heads // share, d_key, 0, SIZE, BLOCK_K)
    document = documents(resets, row, first, seq, RESETS, SIZE)
    from_start, _, _ = decays(g, document, row, first, head, seq, heads, SIZE)
    strength = _strength(beta, row, first, head, seq, heads, SIZE)
    decay = decays_between(g, document, row, first, head, seq, heads, SIZE)
    pairs = tl.where(i > j, dsystem * decay, 0.0)
    products = pairs * tl.dot(keys, tl.trans(keys), input_precision=PRECISION)
    write(dbeta, (dstrength + tl.sum(products, 1))[:, None], row, first, head, seq, heads, 1, 0, SIZE, 1)
    dlog = tl.cumsum(dfrom_start, 0, reverse=True) + gradient_of_decays_between(products * strength, SIZE)
    dlog = dlog[:, None] + read(dg, row, first, head, seq, heads, 1, 0, SIZE, 1)
    write(dg, dlog, row, first, head, seq, heads, 1, 0, SIZE, 1)
    dkeys = dkeys * from_start + read(dk, row, first, head, seq, heads, d_key, 0, SIZE, BLOCK_K)
    pairs = (pairs * strength).to(keys.dtype)
    dkeys = tl.dot(pairs, keys, dkeys, input_precision=PRECISION)
    dkeys = tl.dot(tl.trans(pairs), keys, dkeys, input_precision=PRECISION)
    write(dk, dkeys, row, first, head, seq, heads, d_key, 0, SIZE, BLOCK_K)
