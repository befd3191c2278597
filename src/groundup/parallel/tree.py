"""Broadcast, reduce and all-reduce along a binomial tree: log2(n) steps where a ring takes n - 1.

    step 1    0 -> 1                              broadcast from rank 0 to eight ranks: who has it doubles.
    step 2    0 -> 2   1 -> 3                     A reduction is the same arrows, backwards and from the last
    step 3    0 -> 4   1 -> 5   2 -> 6   3 -> 7   step to the first.

In every step whole tensors travel, so this is for small ones, where the latency is all: ring.py sends 2 (n - 1) / n of
the size per rank in 2 (n - 1) steps, a tree's all-reduce the whole size in each of 2 log2(n) steps. Thakur,
Rabenseifner & Gropp 2005, "Optimization of collective communication operations in MPICH".

Arguments and results as in `ring.py`. Sums are taken along the arrows: counted from the root, eight ranks give
((x0 + x4) + (x2 + x6)) + ((x1 + x5) + (x3 + x7)).
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from groundup.parallel.point_to_point import post
from groundup.parallel.ring import Group, Op


def broadcast(x: Tensor, root: int = 0, group: Group = None) -> Tensor:
    """The root's x. The others give a tensor of its shape and dtype, whose values are not read."""
    x = x.detach()
    whole = x.clone(memory_format=torch.contiguous_format)
    for sender, peer in _arrows(root, group):
        post([(whole, peer)] if sender else [], [] if sender else [(whole, peer)], group).wait()
    return whole


def reduce(x: Tensor, root: int = 0, group: Group = None, op: Op = torch.add) -> Tensor | None:
    """At the root the sum of every rank's x, elsewhere None."""
    total = x.detach().clone(memory_format=torch.contiguous_format)
    arriving = torch.empty_like(total)
    for receiver, peer in reversed(list(_arrows(root, group))):
        if receiver:
            post([], [(arriving, peer)], group).wait()
            op(total, arriving, out=total)
        else:
            post([(total, peer)], [], group).wait()
    return total if dist.get_rank(group) == root else None


def all_reduce(x: Tensor, group: Group = None, op: Op = torch.add) -> Tensor:
    """The sum of every rank's x on every rank: a reduction to rank 0, then a broadcast."""
    total = reduce(x, 0, group, op)
    return broadcast(x if total is None else total, 0, group)


def _arrows(root: int, group: Group) -> Iterator[tuple[bool, int]]:
    """This rank's arrows of a broadcast, step by step: (whether it is the sender, the other end)."""
    size = dist.get_world_size(group)
    place = (dist.get_rank(group) - root) % size
    reached = 1  # places below it have x
    while reached < size:
        if place < reached and place + reached < size:
            yield True, (place + reached + root) % size
        elif reached <= place < 2 * reached:
            yield False, (place - reached + root) % size
        reached *= 2
