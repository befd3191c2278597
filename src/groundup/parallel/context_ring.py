"""Ring attention: keys and values go round the ranks, and each adds what its own queries make of them.

    step 0            step 1            step 2 (of N = 3 ranks)
    q0 with k0 v0     q0 with k2 v2     q0 with k1 v1
    q1 with k1 v1     q1 with k0 v0     q1 with k2 v2        while a rank computes, the next share is on its way
    q2 with k2 v2     q2 with k1 v1     q2 with k0 v0

A softmax needs the sum over all keys, so each query keeps the largest score so far m, the sum l of exp(s - m), and the
sum o of exp(s - m) v; where a new share has a larger score, both sums shrink by exp(m_old - m_new) first (Milakov and
Gimelshein 2018, arXiv:1805.02867). In the end the output is o / l, and m + log l is what the backward pass needs to
make every probability again: it sends keys and values round once more, and with them their gradients, to which each
rank adds its part (Dao 2023, algorithm 2, arXiv:2307.08691).

Liu et al. 2023 (arXiv:2310.01889), on two chunks per rank as in `parallel.context`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from groundup.kernels._compiler import untraced
from groundup.kernels.attention import document_offsets, visible


@untraced  # what is skipped is decided by values
def ring_attention(
    q: Float[Tensor, "rows seq heads d_head"],
    k: Float[Tensor, "rows seq kv_heads d_head"],
    v: Float[Tensor, "rows seq kv_heads d_value"],
    q_pos: Int[Tensor, "rows seq"],
    k_pos: Int[Tensor, "rows seq"],
    *,
    causal: bool = True,
    window: int | None = None,
    sink_tokens: int = 0,
    q_segments: Int[Tensor, "rows seq"] | None = None,
    k_segments: Int[Tensor, "rows seq"] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
    slopes: Float[Tensor, " heads"] | None = None,
    causal_from_zero: bool = False,
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "rows seq heads d_value"]:
    """`kernels.attention` of this rank's queries to the keys and values of all ranks of the group.

    Rows are two for each sequence: the rank's first chunks, then its second (see `parallel.context`). Sums are in
    float32 at least, and so the gradients that travel. ValueError for `causal_from_zero` on several ranks, whose
    tokens cannot all begin at zero, and for slopes that want a gradient.
    """
    check_part(q, causal_from_zero, group)
    if slopes is not None and slopes.requires_grad:
        raise ValueError(
            "ring attention: slopes are fixed and get no gradient here; detach them, or use method='gather'"
        )
    sight = _Sight.of_all_ranks(
        q_pos, k_pos, q_segments, k_segments, group,
        causal=causal, window=window, sink_tokens=sink_tokens,
    )  # fmt: skip
    scores = _Scores(q.shape[-1] ** -0.5 if scale is None else scale, softcap, slopes, sight)
    return _Ring.apply(q, k, v, sinks, scores, group)  # type: ignore[return-value]


def check_part(q: Tensor, causal_from_zero: bool, group: dist.ProcessGroup | None) -> None:
    """ValueError where rows are not pairs of chunks, and where every rank believes that its tokens are the first."""
    if len(q) % 2:
        raise ValueError(
            f"context parallelism: a batch of {len(q)} rows, where each rank has two chunks of every sequence, as two "
            "rows; `context_batch` makes them"
        )
    if causal_from_zero and dist.get_world_size(group) > 1:
        raise ValueError(
            "context parallelism: each rank holds a part of the sequence, so the model must be given the positions of "
            "its tokens (positions=...); `context_batch` makes them"
        )


@dataclass
class _Sight:
    """Which keys of any rank this rank's queries see, chunk by chunk. Keys' tensors are (rank, rows, seq)."""

    q_pos: Tensor
    k_pos: Tensor
    q_segments: Tensor | None
    k_segments: Tensor | None
    k_offsets: Tensor | None
    causal: bool
    window: int | None
    sink_tokens: int

    @classmethod
    def of_all_ranks(
        cls, q_pos: Tensor, k_pos: Tensor, q_segments: Tensor | None, k_segments: Tensor | None,
        group: dist.ProcessGroup | None, *, causal: bool, window: int | None, sink_tokens: int,
    ) -> "_Sight":  # fmt: skip
        """A collective: 8 bytes of position, and 8 of segment, of every token go to all ranks."""
        own = torch.stack([k_pos] if k_segments is None else [k_pos, k_segments])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, own, group=group)
        positions, *segments = torch.stack(parts, 1).unbind()
        offsets = _offsets(positions, segments[0] if segments else None) if sink_tokens else None
        return cls(
            q_pos, positions, q_segments, segments[0] if segments else None, offsets, causal, window, sink_tokens
        )

    def mask(self, i: int, source: int, j: int) -> Bool[Tensor, "batch q k"] | None:
        """What chunk i of the queries sees of chunk j of the source's keys; None where that is nothing."""
        q_pos, k_pos = _chunk(self.q_pos, i), _chunk(self.k_pos[source], j)
        segments: dict[str, Any] = {}
        if self.q_segments is not None and self.k_segments is not None:
            segments = {"q_segments": _chunk(self.q_segments, i), "k_segments": _chunk(self.k_segments[source], j)}
        seen = visible(q_pos, k_pos, causal=self.causal, window=self.window, **segments)
        if self.k_offsets is not None:
            first = _chunk(self.k_offsets[source], j) < self.sink_tokens
            seen |= visible(q_pos, k_pos, causal=self.causal, **segments) & first[:, None, :]
        return seen if bool(seen.any()) else None

    def blocks(self, source: int) -> Iterator[tuple[int, int, Tensor]]:
        """(chunk of the queries, chunk of the source's keys, mask), without blocks in which nothing is visible."""
        for i in (0, 1):
            for j in (0, 1):
                if (mask := self.mask(i, source, j)) is not None:
                    yield i, j, mask

    def distance(self, i: int, source: int, j: int) -> Int[Tensor, "batch q k"]:
        return (_chunk(self.q_pos, i)[:, :, None] - _chunk(self.k_pos[source], j)[:, None, :]).abs()


def _offsets(positions: Tensor, segments: Tensor | None) -> Tensor:
    """How far each key is from the start of its document: known only once all chunks stand in order."""
    if segments is None:
        return positions
    ranks, rows, seq = positions.shape

    def in_order(x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return torch.cat([first, second.flip(0)]).transpose(0, 1).flatten(1)

    offsets = document_offsets(in_order(positions), in_order(segments)).view(rows // 2, 2 * ranks, seq).transpose(0, 1)
    first, second = offsets.chunk(2)
    return torch.cat([first, second.flip(0)], 1)


def _chunk(x: Tensor, i: int) -> Tensor:
    """The first or the second chunk: half of the rows."""
    half = x.shape[0] // 2
    return x[i * half : (i + 1) * half]


@dataclass
class _Scores:
    """Scores of a block of queries and keys, q (batch, q, kv_heads, group, d) and k (batch, k, kv_heads, d)."""

    scale: float
    softcap: float | None
    slopes: Tensor | None
    sight: _Sight

    def __call__(
        self, q: Tensor, k: Tensor, mask: Tensor, at: tuple[int, int, int]
    ) -> tuple[Float[Tensor, "batch kv_heads group q k"], Tensor | float]:
        """(scores, -inf where nothing is seen; their derivative by scale q k^T)."""
        scores = torch.einsum("bqhgd,bkhd->bhgqk", q * self.scale, k)
        slope: Tensor | float = 1.0
        if self.softcap is not None:
            squashed = torch.tanh(scores / self.softcap)
            scores, slope = self.softcap * squashed, 1 - squashed.square()
        if self.slopes is not None:
            fall = self.slopes.view(1, *scores.shape[1:3], 1, 1) * self.sight.distance(*at)[:, None, None]
            scores = scores - fall.to(scores.dtype)
        return scores.masked_fill(~mask[:, None, None], -torch.inf), slope


class _Sums:
    """The running softmax of one chunk of queries: o, m and l of the module's docstring."""

    def __init__(self, q: Tensor, d_value: int, sinks: Tensor | None) -> None:
        batch, seq, kv_heads, group, _ = q.shape
        shape = (batch, kv_heads, group, seq)
        # A sink is a score without a value, and the first that is seen.
        first = q.new_full((kv_heads, group), -torch.inf) if sinks is None else sinks.to(q.dtype).view(kv_heads, group)
        self.most = first[None, :, :, None].expand(shape)
        self.total = q.new_full(shape, 0.0 if sinks is None else 1.0)
        self.out = q.new_zeros(*shape, d_value)

    def add(self, scores: Tensor, v: Float[Tensor, "batch k kv_heads d_value"]) -> None:
        most = torch.maximum(self.most, scores.amax(-1))
        base = most.masked_fill(most == -torch.inf, 0.0)  # nothing seen so far: any base does
        shrink, weights = torch.exp(self.most - base), torch.exp(scores - base[..., None])
        self.total = self.total * shrink + weights.sum(-1)
        self.out = self.out * shrink[..., None] + torch.einsum("bhgqk,bkhd->bhgqd", weights, v)
        self.most = most

    def finish(self) -> tuple[Tensor, Tensor]:
        """(the mean of values, zero for queries that saw nothing; the log of the softmax's denominator)."""
        seen = self.total > 0
        log_total = torch.where(seen, self.most + self.total.log(), torch.inf)
        return self.out / self.total.masked_fill(~seen, 1.0)[..., None], log_total


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, scores: _Scores, group: Any) -> Tensor:
        work = torch.promote_types(q.dtype, torch.float32)
        grouped = q.to(work).unflatten(2, (k.shape[2], -1))
        sums = [_Sums(_chunk(grouped, i), v.shape[-1], sinks) for i in (0, 1)]
        for source, share in _shares(torch.cat([k, v], -1), group):
            keys, values = share.to(work).split([k.shape[-1], v.shape[-1]], -1)
            for i, j, mask in scores.sight.blocks(source):
                block, _ = scores(_chunk(grouped, i), _chunk(keys, j), mask, (i, source, j))
                sums[i].add(block, _chunk(values, j))
        (first, first_log), (second, second_log) = sums[0].finish(), sums[1].finish()
        out, log_total = torch.cat([first, second]), torch.cat([first_log, second_log])
        ctx.save_for_backward(q, k, v, sinks, out, log_total)
        ctx.scores, ctx.group = scores, group
        return out.permute(0, 3, 1, 2, 4).flatten(2, 3).to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, out, log_total = ctx.saved_tensors
        d_out = gradients[0].to(out.dtype).unflatten(2, (k.shape[2], -1)).permute(0, 2, 3, 1, 4)
        block = _BlockGradients(q.to(out.dtype).unflatten(2, (k.shape[2], -1)), d_out, out, log_total, ctx.scores)
        own, arrive = torch.zeros(()), None
        for source, share in _shares(torch.cat([k, v], -1), ctx.group):
            part = block.add(source, *share.to(out.dtype).split([k.shape[-1], v.shape[-1]], -1))
            if source == dist.get_rank(ctx.group):
                own = part
                continue
            # What this share's gradient has from the ranks that it has visited, and from this one.
            arrive = _send_on(part if arrive is None else part + arrive(), ctx.group)
        d_k, d_v = (own if arrive is None else own + arrive()).split([k.shape[-1], v.shape[-1]], -1)
        d_q, d_sinks = block.d_q.flatten(2, 3).to(q.dtype), None
        if sinks is not None:
            weights = torch.exp(sinks.to(out.dtype).view(*out.shape[1:3], 1) - log_total)
            d_sinks = -(weights * block.mean).sum((0, 3)).flatten().to(sinks.dtype)
        return d_q, d_k.to(k.dtype), d_v.to(v.dtype), d_sinks, None, None


class _BlockGradients:
    """Gradients of this rank's queries, gathered up block by block; those of keys and values go back to their rank."""

    def __init__(self, q: Tensor, d_out: Tensor, out: Tensor, log_total: Tensor, scores: _Scores) -> None:
        self.q, self.d_out, self.log_total, self.scores = q, d_out, log_total, scores
        self.mean = (d_out * out).sum(-1)  # of the probabilities' gradients, which the softmax subtracts
        self.d_q = torch.zeros_like(q)

    def add(self, source: int, k: Tensor, v: Tensor) -> Float[Tensor, "rows seq kv_heads both"]:
        """The gradient of the source's keys and values, side by side."""
        d_k, d_v = torch.zeros_like(k), torch.zeros_like(v)
        for i, j, mask in self.scores.sight.blocks(source):
            q, d_out = _chunk(self.q, i), _chunk(self.d_out, i)
            scores, slope = self.scores(q, _chunk(k, j), mask, (i, source, j))
            weights = torch.exp(scores - _chunk(self.log_total, i)[..., None])
            _chunk(d_v, j).add_(torch.einsum("bhgqk,bhgqd->bkhd", weights, d_out))
            d_weights = torch.einsum("bhgqd,bkhd->bhgqk", d_out, _chunk(v, j))
            d_scores = weights * (d_weights - _chunk(self.mean, i)[..., None]) * slope * self.scores.scale
            _chunk(self.d_q, i).add_(torch.einsum("bhgqk,bkhd->bqhgd", d_scores, _chunk(k, j)))
            _chunk(d_k, j).add_(torch.einsum("bhgqk,bqhgd->bkhd", d_scores, q))
        return torch.cat([d_k, d_v], -1)


def _shares(share: Tensor, group: dist.ProcessGroup | None) -> Iterator[tuple[int, Tensor]]:
    """(whose it is, keys and values): this rank's own, then the others', each on its way while the last is used."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    for step in range(size):
        arrive = _send_on(share, group) if step < size - 1 else None
        yield (rank - step) % size, share
        if arrive is not None:
            share = arrive()


def _send_on(x: Tensor, group: dist.ProcessGroup | None) -> Callable[[], Tensor]:
    """Start to send x to the next rank; the result waits for what the rank before has sent."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    x, received = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, x, group=group, group_peer=(rank + 1) % size),
            dist.P2POp(dist.irecv, received, group=group, group_peer=(rank - 1) % size),
        ]
    )

    def arrive() -> Tensor:
        for work in works:
            work.wait()
        return received

    return arrive
