"""Softmax attention whose mask is a function of positions. The only file that knows fast paths for it."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from groundup.kernels._dispatch import op

LONG_CONTEXT = 512
"""Keys above which a fused CPU kernel in float32 beats materialising bfloat16 scores."""

LEAST_SPLIT = 128
"""Queries from which the plain path skips a quarter of the masked square."""


def visible(
    q_pos: Int[Tensor, "#batch q_seq"],
    k_pos: Int[Tensor, "#batch k_seq"],
    *,
    window: int | None = None,
    q_segments: Int[Tensor, "#batch q_seq"] | None = None,
    k_segments: Int[Tensor, "#batch k_seq"] | None = None,
) -> Bool[Tensor, "batch q_seq k_seq"]:
    """Key j is visible to query i iff 0 <= k_pos[j] <= q_pos[i], inside the window, in the same segment.

    A window of w shows a token itself and the w - 1 before it. A padding or empty slot has k_pos = -1.
    """
    distance = q_pos[:, :, None] - k_pos[:, None, :]
    mask = (distance >= 0) & (k_pos >= 0)[:, None, :]
    if window is not None:
        mask = mask & (distance < window)
    if q_segments is not None:
        assert k_segments is not None, "segments of the queries need segments of the keys"
        mask = mask & (q_segments[:, :, None] == k_segments[:, None, :])
    return mask


@op
def attention(
    q: Float[Tensor, "batch q_seq heads d_head"],
    k: Float[Tensor, "batch k_seq kv_heads d_head"],
    v: Float[Tensor, "batch k_seq kv_heads d_value"],
    q_pos: Int[Tensor, "batch q_seq"],
    k_pos: Int[Tensor, "batch k_seq"],
    *,
    window: int | None = None,
    q_segments: Int[Tensor, "batch q_seq"] | None = None,
    k_segments: Int[Tensor, "batch k_seq"] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    causal_from_zero: bool = False,
) -> Float[Tensor, "batch q_seq heads d_value"]:
    r"""softmax(scale * q k^T + mask) v, each kv head serving heads / kv_heads consecutive query heads.

    Training, packing, prefill, chunked prefill and decode are this call with different positions (see
    `visible`). A query that sees no key (padding) gets zeros.

    `scale` is 1 / sqrt(d_head) by default. `softcap` c replaces scores s by c * tanh(s / c).
    `causal_from_zero` is the caller's promise that both position tensors are 0, 1, 2, ... in every row.
    It is an argument because finding out would read the tensor: a host sync on CUDA, a graph break under
    torch.compile.

    Vaswani et al. 2017, eq. 1 (arXiv:1706.03762); grouped heads: Ainslie et al. 2023 (arXiv:2305.13245).
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    if causal_from_zero:
        if window is not None and window >= q.shape[1]:
            window = None
        if softcap is None and window is None and q_segments is None and _fused_wins(q, k):
            return _fused(q, k, v, None, factor)
        # All rows share one triangle, which is cheaper to make than one each.
        q_pos, k_pos = q_pos[:1], k_pos[:1]
    mask = visible(q_pos, k_pos, window=window, q_segments=q_segments, k_segments=k_segments)
    if causal_from_zero:
        # Every token sees itself.
        if q_segments is None and not _fused_wins(q, k):
            return _causal_parts(q, k, v, mask, factor, softcap)
        return _masked(q, k, v, mask, factor, softcap)
    # A row without any visible key has no softmax. It attends to everything, then is set to zero, which
    # keeps NaN out of its gradient too.
    some = mask.any(-1, keepdim=True)
    out = _masked(q, k, v, mask | ~some, factor, softcap)
    return out.masked_fill(~some[..., None], 0.0)


def _fused_wins(q: Tensor, k: Tensor) -> bool:
    """Whether torch's fused kernel beats matmul-softmax, as measured.

    On CPU one query runs at 6 GB/s fused against 50 GB/s as two matrix products, and bfloat16 below
    `LONG_CONTEXT` keys is faster as matrix products too, twice as fast under torch.compile.
    """
    if q.device.type == "cuda":
        return q.dtype != torch.float64
    if q.device.type != "cpu" or q.shape[1] == 1:
        return False
    return q.dtype == torch.float32 or (q.dtype != torch.float64 and k.shape[1] > LONG_CONTEXT)


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float | None) -> Tensor:
    if softcap is None and _fused_wins(q, k):
        return _fused(q, k, v, mask, scale)
    return _matmul_softmax(q, k, v, mask, scale, softcap)


def _causal_parts(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Two halves of the queries, the first against the first half of the keys: a quarter of the square is skipped."""
    half = q.shape[1] // 2
    if q.shape[1] < LEAST_SPLIT:
        return _matmul_softmax(q, k, v, mask, scale, softcap)
    first = _matmul_softmax(q[:, :half], k[:, :half], v[:, :half], mask[:, :half, :half], scale, softcap)
    second = _matmul_softmax(q[:, half:], k, v, mask[:, half:], scale, softcap)
    return torch.cat([first, second], 1)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """torch's kernel; mask None means causal. bfloat16 on CPU is computed in float32, which is faster."""
    dtype = torch.float32 if q.device.type == "cpu" else q.dtype
    groups = q.shape[2] // k.shape[2]
    if mask is not None and groups > 1:
        # With a mask, torch has grouped heads only in its slow path.
        k, v, groups = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2), 1
    q_, k_, v_ = (x.to(dtype).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q_,
        k_,
        v_,
        attn_mask=None if mask is None else mask[:, None],
        is_causal=mask is None,
        scale=scale,
        enable_gqa=groups > 1,
    )
    return out.transpose(1, 2).to(q.dtype)


def _matmul_softmax(
    q: Float[Tensor, "batch q_seq heads d_head"],
    k: Float[Tensor, "batch k_seq kv_heads d_head"],
    v: Float[Tensor, "batch k_seq kv_heads d_value"],
    mask: Bool[Tensor, "#batch q_seq k_seq"],
    scale: float,
    softcap: float | None,
) -> Float[Tensor, "batch q_seq heads d_value"]:
    """Two matrix products around a softmax. K and V are never expanded: a group's queries stack as rows."""
    q_seq, groups = q.shape[1], q.shape[2] // k.shape[2]
    rows = (q * scale).unflatten(2, (-1, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    scores = (rows @ k.permute(0, 2, 3, 1)).unflatten(2, (groups, q_seq))
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    # Adding a bias, unlike masked_fill, keeps nothing for the backward pass and is a fifth faster.
    bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, float("-inf"))
    # torch's softmax accumulates in float32 whatever its input type is.
    weights = (scores + bias[:, None, None]).softmax(-1)
    out = weights.flatten(2, 3) @ v.transpose(1, 2)
    return out.unflatten(2, (groups, q_seq)).permute(0, 3, 1, 2, 4).flatten(2, 3)
