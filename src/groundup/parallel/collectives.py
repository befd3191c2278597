"""Collective operations that gradients flow through. Each one's gradient is another one of them.

    forward                                        backward
    copy_to_ranks         x                        sum over ranks
    sum_over_ranks        sum over ranks           x
    gather_from_ranks     [x0 | x1 | x2]           the sum of all ranks' gradients, own piece
    scatter_sum_to_ranks  own piece of the sum     [g0 | g1 | g2]
    exchange              piece r to rank r        pieces back to where they came from

They run on torch.distributed's own collectives. The algorithms inside of those, written to be read, are in `ring.py`
and `tree.py`; `rank_order.py` has the sum that does not depend on how the ranks are connected.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _CopyToRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()  # autograd may hand the same tensor to another branch
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _GatherFromRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: dist.ProcessGroup | None) -> Tensor:
        ctx.dim, ctx.group = dim, group
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x, group=group)
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return scatter_sum_to_ranks(gradients[0], ctx.dim, ctx.group), None, None


class _ScatterSumToRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: dist.ProcessGroup | None) -> Tensor:
        ctx.dim, ctx.group = dim, group
        parts = [part.contiguous() for part in x.chunk(dist.get_world_size(group), dim)]
        total = torch.empty_like(parts[0])
        dist.reduce_scatter(total, parts, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gather_from_ranks(gradients[0], ctx.dim, ctx.group), None, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup | None
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        result = x.new_empty(sum(received), *x.shape[1:])
        dist.all_to_all_single(result, x.contiguous(), list(received), list(sent), group=group)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return exchange(gradients[0], ctx.received, ctx.sent, ctx.group), None, None, None


def copy_to_ranks(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """x, the same on every rank; its gradient is the sum over ranks, each of which used it for its own part.

    f in Megatron-LM (Shoeybi et al. 2019, arXiv:1909.08053, section 3).
    """
    return _CopyToRanks.apply(x, group)  # type: ignore[return-value]


def sum_over_ranks(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum of every rank's x, on every rank; its gradient goes unchanged to each term (Megatron's g)."""
    return _SumOverRanks.apply(x, group)  # type: ignore[return-value]


def gather_from_ranks(x: Tensor, dim: int = 0, group: dist.ProcessGroup | None = None) -> Tensor:
    """Every rank's x, one after the other along `dim`, on every rank. All must have the same shape.

    Each rank uses the whole for its own part, so the gradient is summed over ranks, of which each takes its piece: g
    with sequence parallelism (Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2).
    """
    return _GatherFromRanks.apply(x, dim, group)  # type: ignore[return-value]


def scatter_sum_to_ranks(x: Tensor, dim: int = 0, group: dist.ProcessGroup | None = None) -> Tensor:
    """Of the sum of every rank's x, this rank's piece along `dim`; the gradient is gathered (the conjugate of g).

    Raises ValueError where `dim` cannot be divided by the number of ranks.
    """
    size = dist.get_world_size(group)
    if x.shape[dim] % size:
        raise ValueError(f"scatter_sum_to_ranks: axis {dim} of {tuple(x.shape)} cannot be divided over {size} ranks")
    return _ScatterSumToRanks.apply(x, dim, group)  # type: ignore[return-value]


def exchange(x: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup | None = None) -> Tensor:
    """Rows of x to other ranks, and theirs to this one, in the order of the ranks (all-to-all).

    sent: how many rows, along the first axis, go to each rank; received: how many come from each. The gradient goes
    back the same way. Raises ValueError where the numbers are not one per rank or do not add up to the rows of x.
    """
    size = dist.get_world_size(group)
    if len(sent) != size or len(received) != size or sum(sent) != len(x):
        raise ValueError(
            f"exchange: {list(sent)} rows sent and {list(received)} received, of {len(x)} on {size} ranks: expected "
            "a number per rank, and as many rows as x has"
        )
    return _Exchange.apply(x, sent, received, group)  # type: ignore[return-value]
