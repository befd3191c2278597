"""Context parallelism: each rank holds part of every sequence, and attention fetches the keys of the others.

Causal attention is a triangle, so with N equal parts in a row the last rank would do nearly all of the work. Cut into
2 N chunks, of which rank r takes r and 2 N - 1 - r, every rank has the same share (here N = 2, # is work):

    queries \\ keys   0  1  2  3
    0   rank 0       #  .  .  .
    1   rank 1       #  #  .  .        rank 0: 1 + 4 blocks
    2   rank 1       #  #  #  .        rank 1: 2 + 3 blocks
    3   rank 0       #  #  #  #

A rank's two chunks lie in its batch as two rows, the later ones after all of the earlier, so a batch keeps its form and
models and objectives need no change (`context_batch`). What a query sees is decided by positions and segments alone
(see `kernels.attention`), which every rank gets of all; so windows and packed documents just work, and a block where
nothing is visible is skipped.

    ring     keys and values go round, N - 1 steps of one rank's share (`context_ring.py`). Only two shares are in
             memory at a time. Liu et al. 2023 (arXiv:2310.01889)
    gather   all keys and values are gathered at once, and the usual kernel runs. Fewer bytes in the backward pass,
             more memory. Llama 3 (Grattafiori et al. 2024, section 3.3.2, arXiv:2407.21783), with the same two chunks

With S bytes of keys and values of one rank's tokens in one layer, a rank sends (N - 1) S forward in either; backward
2 (N - 1) S in the ring (keys and values again, and their gradients), (N - 1) S with gather.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from groundup.config import nearest
from groundup.kernels._compiler import untraced
from groundup.parallel.context_ring import check_part, ring_attention
from groundup.parallel.expert import share_balance, sum_everywhere

METHODS = ("ring", "gather")


def context_parallel(
    model: nn.Module,
    group: dist.ProcessGroup | None = None,
    method: Literal["ring", "gather"] = "ring",
    batch_group: dist.ProcessGroup | None = None,
) -> nn.Module:
    """Let attention of `model` see the tokens that other ranks of the group hold; in place, and return it.

    A module declares its attention in `attend`, a function with the arguments of `kernels.attention`. Feed each rank
    `context_batch`; every token needs its position. Ranks see different tokens, as in data parallelism: losses add up,
    and so do the gradients of all parameters. Balancing losses of experts become those of the tokens of `batch_group`,
    the ranks that share the batch (default: `group`).

    Raises ValueError for a branch that reads other tokens by something else than attention, such as a recurrence.
    """
    if method not in METHODS:
        raise ValueError(f"context parallelism: method {method!r} is unknown{nearest(method, METHODS)}")
    _check_branches(model)
    module: Any
    for module in model.modules():
        if hasattr(module, "attend"):
            if method == "ring":
                module.attend = functools.partial(ring_attention, group=group)
            else:
                module.attend = functools.partial(_gathered_attention, module.attend, group)
        if hasattr(module, "sum_rows"):
            module.sum_rows = functools.partial(_sum_chunks, group=group)
    share_balance(model, group if batch_group is None else batch_group)
    return model


def _check_branches(model: nn.Module) -> None:
    found = False
    for path, module in model.named_modules():
        found = found or hasattr(module, "attend")
        for name, what in getattr(module, "reads", {}).items():
            branch = getattr(module, name)
            if branch is not None and what != "token" and not hasattr(branch, "attend"):
                where = f"{path}.{name}".removeprefix(".")
                raise ValueError(
                    f"context parallelism: {where} is a {type(branch).__name__}, which reads other tokens by itself; "
                    "only attention to the own sequence can be spread over ranks"
                )
    if not found:
        raise ValueError(f"context parallelism: this {type(model).__name__} has no attention (a module with `attend`)")


def context_batch(batch: dict[str, Tensor], group: dist.ProcessGroup | None = None) -> dict[str, Tensor]:
    """This rank's part of a training batch, of which every rank of the group has the whole.

    Each tensor is (batch, seq + 1); the result's are (2 batch, seq / 2N + 1): the columns of chunk r of every row,
    then those of chunk 2N - 1 - r, each with the column after it, which holds the last target. `positions` are made
    where there are none. ValueError for other shapes, and a seq that does not divide by 2N.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    rows, columns = batch["tokens"].shape
    for name, tensor in batch.items():
        if tensor.shape != (rows, columns):
            raise ValueError(
                f"context parallelism: {name} is {tuple(tensor.shape)} beside tokens of {(rows, columns)}; only "
                "tensors with a column for each token can be spread over ranks"
            )
    if "positions" not in batch:
        batch = batch | {"positions": torch.arange(columns, device=batch["tokens"].device).repeat(rows, 1)}
    length = chunk_length(columns - 1, size)
    starts = [chunk * length for chunk in chunks_of(rank, size)]
    return {name: torch.cat([t[:, s : s + length + 1] for s in starts]) for name, t in batch.items()}


def own_part(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """This rank's (2 batch, seq / 2N, ...) of an x of (batch, seq, ...): chunk r of each row, then chunk 2N - 1 - r."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    chunks = x.split(max(1, chunk_length(x.shape[1], size)), 1)
    return torch.cat([chunks[chunk] for chunk in chunks_of(rank, size)])


@untraced
def whole_sequence(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """(batch, seq, ...) in the order of the sequence, from each rank's (2 batch, seq / 2N, ...).

    Its gradient is the sum over ranks of what each did with it, as in `collectives.copy_to_ranks`.
    """
    return _WholeSequence.apply(x, group)  # type: ignore[return-value]


def chunks_of(rank: int, size: int) -> tuple[int, int]:
    """The two of 2 `size` chunks that the rank holds.

    >>> [chunks_of(rank, 3) for rank in range(3)]
    [(0, 5), (1, 4), (2, 3)]
    """
    return rank, 2 * size - 1 - rank


def chunk_length(seq: int, size: int) -> int:
    """Tokens of one of 2 `size` chunks. ValueError where they do not divide."""
    if seq % (2 * size):
        below = seq - seq % (2 * size)
        use = " or ".join(str(n) for n in (below, below + 2 * size) if n)
        raise ValueError(
            f"context parallelism: {seq} tokens cannot be divided into {2 * size} chunks, two for each of {size} "
            f"ranks; use sequences of {use}"
        )
    return seq // (2 * size)


def _in_order(parts: list[Tensor]) -> Tensor:
    """The sequence from the parts of all ranks."""
    halves = [part.chunk(2) for part in parts]
    return torch.cat([first for first, _ in halves] + [second for _, second in reversed(halves)], 1)


def _dealt(x: Tensor, size: int) -> list[Tensor]:
    """The part of each rank; the inverse of `_in_order`."""
    chunks = x.chunk(2 * size, 1)
    return [torch.cat([chunks[i] for i in chunks_of(rank, size)]) for rank in range(size)]


class _WholeSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return _in_order(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        parts = _dealt(gradients[0], dist.get_world_size(ctx.group))
        total = torch.empty_like(parts[0])
        dist.reduce_scatter(total, parts, group=ctx.group)
        return total, None


def _gathered_attention(
    attend: Callable[..., Tensor],
    group: dist.ProcessGroup | None,
    q: Float[Tensor, "rows q_seq heads d_head"],
    k: Float[Tensor, "rows k_seq kv_heads d_head"],
    v: Float[Tensor, "rows k_seq kv_heads d_value"],
    q_pos: Tensor,
    k_pos: Tensor,
    *,
    q_segments: Tensor | None = None,
    k_segments: Tensor | None = None,
    causal_from_zero: bool = False,
    **options: Any,
) -> Float[Tensor, "rows q_seq heads d_value"]:
    """`attend` with this rank's queries, both chunks in one row, and everybody's keys."""
    check_part(q, causal_from_zero, group)
    keys, values = whole_sequence(torch.cat([k, v], -1), group).split([k.shape[-1], v.shape[-1]], -1)
    segments = None if k_segments is None else whole_sequence(k_segments, group)
    out = attend(
        _side_by_side(q), keys, values, _side_by_side(q_pos), whole_sequence(k_pos, group),
        q_segments=None if q_segments is None else _side_by_side(q_segments), k_segments=segments, **options,
    )  # fmt: skip
    return torch.cat(out.chunk(2, 1))


def _side_by_side(x: Tensor) -> Tensor:
    return torch.cat(x.chunk(2), 1)


def _sum_chunks(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sums (rows, ...) over tokens of this rank's rows, which are chunks, become those over whole sequences."""
    first, second = x.chunk(2)
    return sum_everywhere(first + second, group).repeat(2, *[1] * (x.dim() - 1))
