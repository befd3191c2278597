"""Collective operations that gradients flow through."""

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


def copy_to_ranks(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """x, the same on every rank; its gradient is the sum over ranks, each of which used it for its own part.

    f in Megatron-LM (Shoeybi et al. 2019, arXiv:1909.08053, section 3).
    """
    return _CopyToRanks.apply(x, group)  # type: ignore[return-value]


def sum_over_ranks(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum of every rank's x, on every rank; its gradient goes unchanged to each term (Megatron's g)."""
    return _SumOverRanks.apply(x, group)  # type: ignore[return-value]
