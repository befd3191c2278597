"""Expert parallelism: each rank keeps some of the experts, and tokens travel to those that they chose.

    rank 0 has experts 0 1                  rank 1 has experts 2 3
    rows sorted by expert:  0 0 1 | 2 3     0 | 2 2 2 3
                                  \\________/
    all-to-all              0 0 1 0         2 3 2 2 2 3        each block from one source
    sort, run the experts   0 0 0 1         2 2 2 2 3 3
    all-to-all, back        0 0 1 | 2 3     0 | 2 2 2 3

Every rank has tokens of its own, as in data parallelism, and the whole router. Nothing is padded and nothing
dropped: counts go first, so that every rank knows how many rows to expect from whom.

In a layer a rank sends, of its P pairs of token and expert, those whose expert lives elsewhere, as d_model
numbers each, and as many numbers come back; the backward pass does the same again. With even routing over N ranks
that is 4 P (N - 1) / N d_model numbers sent and received per rank, layer and step, and (N - 1) / N of one int64 per
expert.

Lepikhin et al. 2020 (GShard, arXiv:2006.16668, section 3), with the counts of MegaBlocks (Gale et al. 2022,
arXiv:2211.15841) in place of a capacity.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from groundup.kernels._compiler import untraced
from groundup.parallel.collectives import copy_to_ranks, sum_over_ranks


def expert_parallel(
    model: nn.Module, group: dist.ProcessGroup | None = None, batch_group: dist.ProcessGroup | None = None
) -> nn.Module:
    """Deal the experts of `model` over the ranks of the group, in place, and return it.

    A module declares its stacks in `expert_stacks`, the names of children whose parameters have one row per expert;
    its forward takes (rows sorted by expert, the end of each expert's rows). Rank r of N keeps experts r E / N to
    (r + 1) E / N, under the same names. All ranks must hold the same weights before. Build optimizers afterwards.

    An expert sees the rows of all ranks, so its gradient is whole when each rank has run its backward pass of a *sum*
    of losses; every other parameter's is a part (`sum_replicated_gradients`). Balancing losses become those of all
    tokens of `batch_group`, the ranks that share the batch (default: `group`). A capacity, and a choice
    by the experts, stay a matter of the rank's own tokens (GShard's groups), as they are of a micro-batch's.

    Raises ValueError where there are no experts, or they do not divide over the ranks.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    found = {path: module for path, module in model.named_modules() if hasattr(module, "expert_stacks")}
    if not found:
        raise ValueError(f"expert parallelism: this {type(model).__name__} has no experts; build it with MoEConfig")
    for path, module in found.items():
        for name, stack in _stacks(module):
            for parameter in stack.parameters(recurse=False):
                if len(parameter) % size:
                    raise ValueError(f"{path}.{name}: {len(parameter)} experts cannot be divided over {size} ranks")
    for module in found.values():
        _deal(module, rank, size, group)
    share_balance(model, group if batch_group is None else batch_group)
    return model


def share_balance(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Make balancing losses those of the tokens of all ranks of the group.

    A module that has such losses declares `sum_batch`, a function of a tensor. Each rank adds the whole loss to its
    own sum of losses, weighted by its own tokens, so gradients are summed over ranks, too. Qiu et al. 2025
    (arXiv:2501.11873) find that experts specialise more when all ranks' tokens are balanced together.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "sum_batch"):
            module.sum_batch = functools.partial(sum_everywhere, group=group)


def dealt_parameters(model: nn.Module) -> set[str]:
    """The names of parameters of which every rank has other experts, and whose gradients are whole."""
    return {
        f"{path}.{name}.{inner}".removeprefix(".")
        for path, module in model.named_modules()
        for name, stack in _stacks(module)
        for inner in getattr(stack, "cut_dims", {})
    }


def sum_replicated_gradients(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Sum over ranks the gradients of everything but the experts, in one all-reduce for each type of number."""
    dealt = dealt_parameters(model)
    kinds: dict[Any, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if name not in dealt and parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter.grad)
    for gradients in kinds.values():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=group)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))


def _stacks(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A slot may be empty: the gate of a plain MLP."""
    for name in getattr(module, "expert_stacks", ()):
        if isinstance(stack := getattr(module, name), nn.Module):
            yield name, stack


def _deal(module: Any, rank: int, size: int, group: dist.ProcessGroup | None) -> None:
    for _, stack in _stacks(module):
        names = list(dict(stack.named_parameters(recurse=False)))
        stack.cut_dims = dict.fromkeys(names, 0)  # type: ignore[assignment]
        for name in names:
            whole = getattr(stack, name)
            own = whole.detach().chunk(size)[rank].clone()
            setattr(stack, name, nn.Parameter(own, whole.requires_grad))
    module.forward = functools.partial(_at_their_owners, module.forward, group)


# Counts decide shapes, which no compiled graph can hold.
@untraced
def _at_their_owners(
    run: Callable[[Tensor, Tensor], Tensor],
    group: dist.ProcessGroup | None,
    rows: Float[Tensor, "rows d_model"],
    ends: Int[Tensor, " experts"],
) -> Float[Tensor, "rows d_model"]:
    """Rows, sorted by expert, go to the ranks that own the experts and come back; rows of nobody give zeros."""
    size = dist.get_world_size(group)
    leaving = ends.diff(prepend=ends.new_zeros(1)).view(size, -1)  # by owner, and its experts
    arriving = torch.empty_like(leaving)  # by source, and this rank's experts
    dist.all_to_all_single(arriving, leaving, group=group)
    sends, receives = torch.stack([leaving.sum(1), arriving.sum(1)]).tolist()
    here = all_to_all(rows[: sum(sends)], sends, receives, group)
    experts = torch.arange(arriving.shape[1], device=rows.device).repeat(size)
    order = experts.repeat_interleave(arriving.flatten()).argsort(stable=True)
    done = run(here[order], arriving.sum(0).cumsum(0))
    back = all_to_all(done[order.argsort()], receives, sends, group)
    return torch.cat([back, back.new_zeros(len(rows) - len(back), back.shape[1])])


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sends: list[int], receives: list[int], group: Any) -> Tensor:
        ctx.sends, ctx.receives, ctx.group = sends, receives, group
        return _exchange(rows, sends, receives, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(gradients[0], ctx.receives, ctx.sends, ctx.group), None, None, None


def all_to_all(
    rows: Float[Tensor, "rows d"], sends: list[int], receives: list[int], group: dist.ProcessGroup | None = None
) -> Float[Tensor, "received d"]:
    """The first sends[0] rows to rank 0, the next sends[1] to rank 1, ...; what came, by source. Gradients go back."""
    return _AllToAll.apply(rows, sends, receives, group)  # type: ignore[return-value]


def _exchange(rows: Tensor, sends: list[int], receives: list[int], group: dist.ProcessGroup | None) -> Tensor:
    received = rows.new_empty(sum(receives), rows.shape[1])
    dist.all_to_all_single(received, rows.contiguous(), receives, sends, group=group)
    return received


def sum_everywhere(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over ranks, each of which goes on with it for a loss of its own: so gradients are summed as well."""
    return copy_to_ranks(sum_over_ranks(x, group), group)
