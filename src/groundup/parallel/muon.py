"""Muon's costly part, shared by the ranks: each orthogonalises some of the matrices, then all have all of them."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from groundup.optim.muon import orthogonalize


def orthogonalize_on_ranks(stacks: list[Tensor], steps: int, dtype: torch.dtype | None) -> list[Tensor]:
    """`optim.orthogonalize` of every stack, (matrices, ..., rows, cols) each, on every rank.

        optim.muon_adamw(model, together=parallel.orthogonalize_on_ranks)

    Gradients are summed over ranks before, so directions are equal everywhere and each rank would do the same
    2 x 5 x (2 m^2 n + m^3) FLOPs per matrix. Instead the matrices are dealt out by their cost, and one all-gather, in
    the type of the iteration, hands round the results: 2 bytes per parameter. Momenta stay on every rank (they cost
    one pass over memory), so a checkpoint of one rank is whole and loads on any number.

    Without a process group this is the plain computation. Jordan et al. 2024, "Muon", whose code deals out one matrix
    after the other in the order of their sizes, and keeps each momentum with its owner.
    """
    size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if size == 1 or isinstance(stacks[0], FakeTensor):  # a rehearsal has nobody to gather from
        return [orthogonalize(stack, steps, dtype) for stack in stacks]
    owners = deal([(stack.shape[0], _cost(stack)) for stack in stacks], size)
    wire = stacks[0].dtype if dtype is None else dtype
    lengths = [_length(stacks, owners, rank) for rank in range(size)]
    own = torch.zeros(max(lengths), dtype=wire, device=stacks[0].device)
    done = [
        orthogonalize(stack[mine], steps, dtype).reshape(-1)
        for stack, owner in zip(stacks, owners, strict=True)
        if (mine := [i for i, rank in enumerate(owner) if rank == dist.get_rank()])
    ]
    if done:
        own[: lengths[dist.get_rank()]] = torch.cat(done)
    gathered = [torch.empty_like(own) for _ in range(size)]
    dist.all_gather(gathered, own)
    return _spread(stacks, owners, gathered)


def deal(stacks: list[tuple[int, float]], ranks: int) -> list[list[int]]:
    """The rank of each matrix of each stack of (matrices, cost of one): the dearest first, to whoever has least to do.

    No rank has more than 4/3 of the least that is possible (Graham 1969, theorem 2), and all ranks find the same.

    >>> deal([(2, 5.0), (3, 2.0)], 2)
    [[0, 1], [0, 1, 0]]
    """
    owners = [[0] * count for count, _ in stacks]
    loads = [0.0] * ranks
    matrices = [(cost, number, i) for number, (count, cost) in enumerate(stacks) for i in range(count)]
    for cost, number, i in sorted(matrices, key=lambda matrix: -matrix[0]):
        rank = loads.index(min(loads))
        owners[number][i] = rank
        loads[rank] += cost
    return owners


def _cost(stack: Tensor) -> float:
    """Up to a factor, the FLOPs for one parameter of the stack, which may itself be several matrices."""
    short, long = sorted(stack.shape[-2:])
    return stack.shape[1:-2].numel() * (2 * short**2 * long + short**3)


def _length(stacks: list[Tensor], owners: list[list[int]], rank: int) -> int:
    return sum(owner.count(rank) * stack[0].numel() for stack, owner in zip(stacks, owners, strict=True))


def _spread(stacks: list[Tensor], owners: list[list[int]], gathered: list[Tensor]) -> list[Tensor]:
    """Every rank's results in their places; each rank's buffer holds its matrices in the order of the stacks."""
    at = [0] * len(gathered)
    updates = [torch.empty_like(stack) for stack in stacks]
    for update, owner in zip(updates, owners, strict=True):
        for i, rank in enumerate(owner):
            size = update[i].numel()
            update[i] = gathered[rank][at[rank] : at[rank] + size].view_as(update[i])
            at[rank] += size
    return updates
