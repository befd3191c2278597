"""Softmax attention whose mask is a function of positions. The only file that knows fast paths for it."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from groundup.kernels._dispatch import op

LONG_CONTEXT = 512
"""Keys above which a fused CPU kernel in float32 beats materialising bfloat16 scores."""

LEAST_PART, MOST_PARTS = 64, 4
"""Queries of a part, and parts, in which the plain path goes over the masked square."""


def visible(
    q_pos: Int[Tensor, "#batch q_seq"],
    k_pos: Int[Tensor, "#batch k_seq"],
    *,
    causal: bool = True,
    window: int | None = None,
    sink_tokens: int = 0,
    q_segments: Int[Tensor, "#batch q_seq"] | None = None,
    k_segments: Int[Tensor, "#batch k_seq"] | None = None,
) -> Bool[Tensor, "batch q_seq k_seq"]:
    """Key j is visible to query i iff 0 <= k_pos[j] <= q_pos[i], inside the window, in the same segment.

    A window of w shows a token itself and the w - 1 before it; the first `sink_tokens` of the document stay visible
    from outside of it (Xiao et al. 2023, arXiv:2309.17453). A padding or empty slot has k_pos = -1.
    With `causal=False` later keys are visible, too: 0 <= k_pos[j] and 0 <= q_pos[i], and a window of w shows
    the w - 1 tokens on either side.
    """
    distance = q_pos[:, :, None] - k_pos[:, None, :]
    if causal:
        mask = (distance >= 0) & (k_pos >= 0)[:, None, :]
    else:
        distance = distance.abs()
        mask = (q_pos >= 0)[:, :, None] & (k_pos >= 0)[:, None, :]
    if window is not None:
        near = distance < window
        mask = mask & (near | (document_offsets(k_pos, k_segments) < sink_tokens)[:, None, :] if sink_tokens else near)
    if q_segments is not None:
        assert k_segments is not None, "segments of the queries need segments of the keys"
        mask = mask & (q_segments[:, :, None] == k_segments[:, None, :])
    return mask


def document_offsets(positions: Int[Tensor, "#batch seq"], segments: Int[Tensor, "#batch seq"] | None) -> Tensor:
    """How far each token is from the start of its document: positions may run on from one to the next."""
    if segments is None:
        return positions
    places = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    is_start = torch.cat([torch.ones_like(segments[:, :1]), segments[:, 1:] != segments[:, :-1]], 1).bool()
    positions = positions.expand(segments.shape)
    return positions - positions.gather(1, places.masked_fill(~is_start, 0).cummax(1).values)


@op
def attention(
    q: Float[Tensor, "batch q_seq heads d_head"],
    k: Float[Tensor, "batch k_seq kv_heads d_head"],
    v: Float[Tensor, "batch k_seq kv_heads d_value"],
    q_pos: Int[Tensor, "batch q_seq"],
    k_pos: Int[Tensor, "batch k_seq"],
    *,
    causal: bool = True,
    window: int | None = None,
    sink_tokens: int = 0,
    q_segments: Int[Tensor, "batch q_seq"] | None = None,
    k_segments: Int[Tensor, "batch k_seq"] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
    slopes: Float[Tensor, " heads"] | None = None,
    causal_from_zero: bool = False,
) -> Float[Tensor, "batch q_seq heads d_value"]:
    r"""softmax(scale * q k^T + mask) v, each kv head serving heads / kv_heads consecutive query heads.

    Training, packing, prefill, chunked prefill and decode are this call with different positions (see
    `visible`). A query that sees no key (padding) gets zeros. `causal=False` is an encoder's: every token sees all.

    `scale` is 1 / sqrt(d_head) by default. `softcap` c replaces scores s by c * tanh(s / c). `sinks` are one more
    score per head, which takes its share of the softmax and has no value (gpt-oss, arXiv:2508.10925). `slopes` m
    subtract m * distance from scores (ALiBi; Press et al. 2021, arXiv:2108.12409).
    `causal_from_zero` is the caller's promise that both position tensors are 0, 1, 2, ... in every row (so that
    with `causal=False` nothing is masked).
    It is an argument because finding out would read the tensor: a host sync on CUDA, a graph break under
    torch.compile.

    Vaswani et al. 2017, eq. 1 (arXiv:1706.03762); grouped heads: Ainslie et al. 2023 (arXiv:2305.13245).
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    if causal_from_zero:
        if window is not None and window >= max(q.shape[1], k.shape[1]):
            window = None
        plain = softcap is None and window is None and q_segments is None and sinks is None and slopes is None
        if plain and _fused_wins(q, k):
            return _fused(q, k, v, None, factor, causal)
        # All rows share one triangle, which is cheaper to make than one each.
        q_pos, k_pos = q_pos[:1], k_pos[:1]
    mask = visible(
        q_pos, k_pos, causal=causal, window=window, sink_tokens=sink_tokens,
        q_segments=q_segments, k_segments=k_segments,
    )  # fmt: skip
    terms = Terms(factor, softcap, sinks, None if slopes is None else _falling(slopes, q_pos, k_pos))
    if causal_from_zero:
        # Every token sees itself.
        if causal and q_segments is None and not _fused_wins(q, k):
            return _causal_parts(q, k, v, mask, terms)
        return _masked(q, k, v, mask, terms)
    # A row without any visible key has no softmax. It attends to everything, then is set to zero, which
    # keeps NaN out of its gradient too.
    some = mask.any(-1, keepdim=True)
    out = _masked(q, k, v, mask | ~some, terms)
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


class Terms(NamedTuple):
    """What is done to the scores: `fall` (#batch, heads, q_seq, k_seq) is added after the soft cap."""

    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None
    fall: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        return self.softcap is None and self.sinks is None and self.fall is None


def _falling(slopes: Tensor, q_pos: Tensor, k_pos: Tensor) -> Float[Tensor, "#batch heads q_seq k_seq"]:
    return -slopes[:, None, None] * (q_pos[:, :, None] - k_pos[:, None, :]).abs()[:, None]


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, terms: Terms) -> Tensor:
    if terms.is_plain and _fused_wins(q, k):
        return _fused(q, k, v, mask, terms.scale)
    return _matmul_softmax(*_by_head(q, k, v, terms.scale), mask, terms)


def _by_head(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Views with the heads in front, and queries times `scale` beside those of their group: (batch, kv_heads, q_seq,
    groups, d_head), (batch, kv_heads, k_seq, d_head) and the same of values."""
    rows = (q * scale).unflatten(2, (k.shape[2], -1)).transpose(1, 2)
    return rows, k.transpose(1, 2), v.transpose(1, 2)


def _causal_parts(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, terms: Terms) -> Tensor:
    """Parts of the queries, each against the keys up to its last: of four, three eighths of the square are skipped.

    Every head's tokens are brought together first, once, and a part's operands are laid out before they are
    transposed: a batched product copies whatever is neither contiguous nor the transpose of that, and slowly.
    """
    parts, length = max(1, min(MOST_PARTS, q.shape[1] // LEAST_PART)), q.shape[1]
    ends = [length * (i + 1) // parts for i in range(parts)]
    rows, k, v = (x.contiguous() for x in _by_head(q, k, v, terms.scale))
    outs = []
    for start, end in zip([0, *ends], ends, strict=False):
        fall = None if terms.fall is None else terms.fall[..., start:end, :end]
        own = mask[:, start:end, :end]
        query, key, value = (x.contiguous() for x in (rows[:, :, start:end], k[:, :, :end], v[:, :, :end]))
        outs.append(_matmul_softmax(query, key, value, own, terms._replace(fall=fall)))
    return outs[0] if parts == 1 else torch.cat(outs, 1)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool = True) -> Tensor:
    """torch's kernel; mask None means causal, or all. bfloat16 on CPU is computed in float32, which is faster."""
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
        is_causal=mask is None and causal,
        scale=scale,
        enable_gqa=groups > 1,
    )
    return out.transpose(1, 2).to(q.dtype)


def _matmul_softmax(
    rows: Float[Tensor, "batch kv_heads q_seq groups d_head"],
    k: Float[Tensor, "batch kv_heads k_seq d_head"],
    v: Float[Tensor, "batch kv_heads k_seq d_value"],
    mask: Bool[Tensor, "#batch q_seq k_seq"],
    terms: Terms,
) -> Float[Tensor, "batch q_seq heads d_value"]:
    """Two matrix products around a softmax. K and V are never expanded: a group's queries stack as rows."""
    scores = _Scores.apply(rows.flatten(2, 3), k).unflatten(2, rows.shape[2:4])
    if terms.softcap is not None:
        scores = terms.softcap * torch.tanh(scores / terms.softcap)
    # Adding a bias, unlike masked_fill, keeps nothing for the backward pass and is a fifth faster.
    bias = torch.zeros(mask.shape, dtype=rows.dtype, device=rows.device).masked_fill(~mask, float("-inf"))
    bias = bias[:, None, :, None]
    if terms.fall is not None:
        bias = bias + terms.fall.to(rows.dtype).unflatten(1, (-1, rows.shape[3])).transpose(2, 3)
    weights = _softmax(scores + bias, terms.sinks)
    out = (weights.flatten(2, 3) @ v).unflatten(2, rows.shape[2:4])
    return out.transpose(1, 2).flatten(2, 3)


class _Scores(torch.autograd.Function):
    """q k^T of each head. Its gradient for k is dS^T q, which lies as k does; autograd's own is the transpose of
    q^T dS, and whatever reads it next has to go across its rows."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, k: Tensor) -> Tensor:
        return rows @ k.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, k = ctx.saved_tensors
        need_rows, need_k = ctx.needs_input_grad
        return grad @ k if need_rows else None, grad.mT @ rows if need_k else None


def _softmax(scores: Float[Tensor, "batch kv_heads q_seq groups k_seq"], sinks: Tensor | None) -> Tensor:
    """torch's softmax, which accumulates in float32 whatever its input type is; with sinks, of one column more."""
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.to(scores.dtype).view(scores.shape[1], 1, scores.shape[3], 1).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1]
