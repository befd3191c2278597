"""The gated delta rule: a state that is corrected instead of added to, by token and by chunk."""

import torch

from groundup.kernels._chunks import (
    CHUNK,
    Chunks,
    Gates,
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
    tokens,
)
from groundup.kernels._dispatch import op


def gated_delta(
    q: Keys,
    k: Keys,
    v: Values,
    log_decay: Gates,
    beta: Gates,
    state: State | None = None,
    resets: Resets | None = None,
) -> tuple[Values, State]:
    """The rule of `gated_delta_recurrent` in the form that suits the length."""
    form = gated_delta_recurrent if q.shape[1] == 1 else gated_delta_chunked
    return form(q, k, v, log_decay, beta, state, resets)


@op
def gated_delta_recurrent(
    q: Keys,
    k: Keys,
    v: Values,
    log_decay: Gates,
    beta: Gates,
    state: State | None = None,
    resets: Resets | None = None,
) -> tuple[Values, State]:
    r"""S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T and out_t = S_t^T q_t, with a = exp(log_decay), b = beta.

    What the decayed state holds under k_t moves towards v_t by the share b_t: an online least-squares step, which
    stays bounded where |k| = 1 and b is in [0, 2]. States are (d_key, d_value), the transpose of the paper's.
    A token with beta = 0 and log_decay = 0 leaves the state as it is. Otherwise as `gated_linear_recurrent`.

    Yang et al. 2024, section 3.1 (arXiv:2412.06464); without decay: Yang et al. 2024 (arXiv:2406.06484).
    """
    dtype, s = v.dtype, initial_state(k, v, state)
    q, k = (per_head(x, v.shape[2]) for x in (q, k))
    v, beta, decay = at_least_float32(v), at_least_float32(beta), at_least_float32(log_decay).exp()
    outs = []
    for t, (q_t, k_t, v_t, decay_t, beta_t) in enumerate(tokens(q, k, v, decay, beta)):
        s = reset(s, resets, t) * decay_t[..., None, None]
        correction = beta_t[..., None] * (v_t - read(k_t, s))
        s = s + k_t[..., :, None] * correction[..., None, :]
        outs.append(read(q_t, s))
    return torch.stack(outs, 1).to(dtype), s


@op
def gated_delta_chunked(
    q: Keys,
    k: Keys,
    v: Values,
    log_decay: Gates,
    beta: Gates,
    state: State | None = None,
    resets: Resets | None = None,
    chunk_size: int = CHUNK,
) -> tuple[Values, State]:
    r"""`gated_delta_recurrent` in chunks. One chunk as long as the sequence is its parallel form.

    With D_ij the decay from token j to i, the corrections u of a chunk that starts at state S solve the triangular
    system u_i + b_i sum_{j<i} D_ij (k_i . k_j) u_j = b_i (v_i - D_i0 S^T k_i). Its solution is linear in S, so all
    chunks are solved at once, for v and for k; then u takes the place of v in `gated_linear_chunked`.

    Yang et al. 2024, section 3.3 (arXiv:2412.06464).
    """
    s = initial_state(k, v, state)
    chunks = Chunks(q, k, v, log_decay[..., None], resets, chunk_length(v.shape[1], chunk_size))
    beta_ = chunks.split(beta[..., None], s.shape[1] // chunks.groups)
    decays = decays_between(chunks.g)[..., 0]
    system = chunks.same_document(beta_ * (chunks.k @ chunks.k.mT) * decays)
    wanted = torch.cat([beta_ * chunks.v, beta_ * chunks.from_start * chunks.k], -1)
    # Only the part below the diagonal is read.
    solved = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
    from_v, from_k = solved.split([v.shape[-1], k.shape[-1]], -1)

    s, starts, corrections = s.unflatten(1, (chunks.groups, -1)), [], []
    each = (from_v, from_k, chunks.from_start[..., -1:, :], (chunks.k * chunks.to_end).mT)
    for from_v_i, from_k_i, kept, k_to_end in zip(*(x.unbind(3) for x in each), strict=True):
        u = from_v_i - from_k_i @ s
        starts.append(s)
        corrections.append(u)
        s = kept * s + k_to_end @ u
    scores = chunks.same_document((chunks.q @ chunks.k.mT) * decays)
    out = scores @ torch.stack(corrections, 3) + (chunks.q * chunks.from_start) @ torch.stack(starts, 3)
    return chunks.join(out, v), s.flatten(1, 2)
