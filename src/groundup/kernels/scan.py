"""Gated linear recurrences: token by token, chunk by chunk, and all at once.

The three forms compute the same. By token is the definition, and what decoding runs. By chunk is what training runs:
matrix products inside of chunks, and one state from each chunk to the next. All at once is attention with a matrix of
decays in place of the softmax, quadratic in the length.
"""

import torch
from torch import Tensor

from groundup.kernels._chunks import (
    CHUNK,
    Chunks,
    Decays,
    Keys,
    Resets,
    State,
    Values,
    at_least_float32,
    chunk_length,
    decays_between,
    initial_state,
    per_head,
    read,
    reset,
    sums_after,
    tokens,
)
from groundup.kernels._dispatch import op


def gated_linear(
    q: Keys, k: Keys, v: Values, log_decay: Decays, state: State | None = None, resets: Resets | None = None
) -> tuple[Values, State]:
    """The rule of `gated_linear_recurrent` in the form that suits the length: one token needs no chunk."""
    form = gated_linear_recurrent if q.shape[1] == 1 else gated_linear_chunked
    return form(q, k, v, log_decay, state, resets)


@op
def gated_linear_recurrent(
    q: Keys, k: Keys, v: Values, log_decay: Decays, state: State | None = None, resets: Resets | None = None
) -> tuple[Values, State]:
    r"""S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T and out_t = S_t^T q_t, token by token: the definition.

    A decay per channel of the key is gated linear attention; one per head (last axis 1) is RetNet's where it is
    constant, and the state space duality of Mamba-2 where it is exp(dt A), with q = C, k = B, v = dt x. No decay
    is linear attention. Queries and keys may have fewer heads ("groups") than values; each serves consecutive ones.

    A token with `resets` starts from a state of zeros. One with k = 0 and log_decay = 0 leaves the state as it is.
    Returns the outputs in v's type, and the last state.

    Yang et al. 2023, section 4 (arXiv:2312.06635); Dao & Gu 2024, section 5 (arXiv:2405.21060); Sun et al. 2023, eq. 6
    (arXiv:2307.08621); Katharopoulos et al. 2020, eq. 18 to 20 (arXiv:2006.16236).
    """
    dtype, s = v.dtype, initial_state(k, v, state)
    q, k = (per_head(x, v.shape[2]) for x in (q, k))
    v, decay = at_least_float32(v), at_least_float32(log_decay).exp()
    outs = []
    for t, (q_t, k_t, v_t, decay_t) in enumerate(tokens(q, k, v, decay)):
        s = reset(s, resets, t)
        s = decay_t[..., None] * s + k_t[..., :, None] * v_t[..., None, :]
        outs.append(read(q_t, s))
    return torch.stack(outs, 1).to(dtype), s


@op
def gated_linear_chunked(
    q: Keys,
    k: Keys,
    v: Values,
    log_decay: Decays,
    state: State | None = None,
    resets: Resets | None = None,
    chunk_size: int = CHUNK,
) -> tuple[Values, State]:
    r"""`gated_linear_recurrent` in chunks: out = (Q K^T * decays) V + (Q * decay from the chunk's start) S.

    The scores of a decay per channel are found in halves, see `_scores_by_channel`.

    Dao & Gu 2024, section 6 (arXiv:2405.21060); Yang et al. 2023, section 4 (arXiv:2312.06635).
    """
    chunks = Chunks(q, k, v, log_decay, resets, chunk_length(v.shape[1], chunk_size))
    scores = _scores_by_channel if log_decay.shape[-1] > 1 else _scores_by_head
    return _sum_over_chunks(chunks, scores(chunks.q, chunks.k, chunks.g), initial_state(k, v, state), v)


@op
def gated_linear_parallel(
    q: Keys, k: Keys, v: Values, log_decay: Decays, state: State | None = None, resets: Resets | None = None
) -> tuple[Values, State]:
    """`gated_linear_recurrent` as one masked product over all pairs of tokens: its attention form."""
    chunks = Chunks(q, k, v, log_decay, resets, v.shape[1])
    decays = decays_between(chunks.g)
    if log_decay.shape[-1] == 1:
        scores = (chunks.q @ chunks.k.mT) * decays[..., 0]
    else:
        scores = (chunks.q[..., :, None, :] * chunks.k[..., None, :, :] * decays).sum(-1)
    return _sum_over_chunks(chunks, scores, initial_state(k, v, state), v)


def _sum_over_chunks(chunks: Chunks, scores: Tensor, state: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and last state, from the scores within each chunk."""
    added = (chunks.k * chunks.to_end).mT @ chunks.v
    s, starts = state.unflatten(1, (chunks.groups, -1)), []
    for kept, new in zip(chunks.from_start[..., -1, :, None].unbind(3), added.unbind(3), strict=True):
        starts.append(s)
        s = kept * s + new
    out = chunks.same_document(scores) @ chunks.v + (chunks.q * chunks.from_start) @ torch.stack(starts, 3)
    return chunks.join(out, v), s.flatten(1, 2)


def _scores_by_head(q: Tensor, k: Tensor, g: Tensor) -> Tensor:
    """q_i . k_j decayed from token j to token i, one decay for all channels: a product, then the decays."""
    return (q @ k.mT) * decays_between(g)[..., 0]


def _scores_by_channel(q: Tensor, k: Tensor, g: Tensor) -> Tensor:
    """sum_d q_id k_jd exp(sum of g_d after token j up to i), zero above the diagonal.

    Cut the tokens in halves. Between the halves, each factor decays to the cut, q by the tokens from it and k by
    those up to it, so that neither exponential exceeds 1: one matrix product. Inside of each half: the same again.
    """
    size = q.shape[-2]
    if size == 1:
        return (q * k).sum(-1, keepdim=True).expand(*g.shape[:-1], 1)
    halves = [x.unflatten(-2, (2, size // 2)) for x in (q, k, g)]
    (_, q_late), (k_early, _), (g_early, g_late) = (x.unbind(-3) for x in halves)
    inner_early, inner_late = _scores_by_channel(*halves).unbind(-3)
    between = (q_late * g_late.cumsum(-2).exp()) @ (k_early * sums_after(g_early).exp()).mT
    above = torch.zeros_like(between)
    return torch.cat([torch.cat([inner_early, above], -1), torch.cat([between, inner_late], -1)], -2)
