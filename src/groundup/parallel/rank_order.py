"""Sums over ranks in the order of the ranks: the bits of one process that adds the same tensors one after the other.

A ring adds each piece in another order, a tree in yet another, and rounding makes the three differ. Here each rank
receives all terms of its own piece, adds them from rank 0 up, and then has the sums handed round:

    rank 0   a0 a1 a2                a0 b0 c0                S0 = (a0 + b0) + c0               S0 S1 S2
    rank 1   b0 b1 b2    exchange    a1 b1 c1    add         S1 = (a1 + b1) + c1    gather     S0 S1 S2
    rank 2   c0 c1 c2                a2 b2 c2                S2 = (a2 + b2) + c2               S0 S1 S2

Both halves send (n - 1) / n of the tensor from every rank, together as much as a ring's all-reduce, in two latencies.
What it needs more is room: the terms of the own piece from everyone. Everything happens within one flat tensor; the
pieces, one per rank, may have any lengths.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from groundup.parallel.point_to_point import Pending, post


class Exchange:
    """Every rank's pieces on their way to those that add them. Nobody may touch `flat` before `add` has returned."""

    def __init__(self, flat: Tensor, lengths: Sequence[int], group: dist.ProcessGroup | None = None):
        self._rank = dist.get_rank(group)
        pieces = flat.split(list(lengths))
        self._own = pieces[self._rank]
        peers = [peer for peer in range(len(pieces)) if peer != self._rank]
        terms = self._own.new_empty(len(peers), self._own.numel())
        self._terms = list(terms)
        sends = [(pieces[peer], peer) for peer in peers]
        self._pending = post(sends, list(zip(self._terms, peers, strict=True)), group)

    def add(self) -> Tensor:
        """Wait for the terms of this rank's piece, and leave their sum there, in `flat`."""
        self._pending.wait()
        terms = [*self._terms[: self._rank], self._own, *self._terms[self._rank :]]
        total = terms[0]
        for term in terms[1:]:
            total = torch.add(total, term, out=self._own if term is self._own else total)
        self._terms = []
        return self._own


def start_gather(flat: Tensor, lengths: Sequence[int], group: dist.ProcessGroup | None = None) -> Pending:
    """Send this rank's piece of `flat` to all others, and receive theirs in their places."""
    rank = dist.get_rank(group)
    pieces = flat.split(list(lengths))
    peers = [peer for peer in range(len(pieces)) if peer != rank]
    return post([(pieces[rank], peer) for peer in peers], [(pieces[peer], peer) for peer in peers], group)


def even_lengths(total: int, ranks: int) -> list[int]:
    """Lengths of pieces that differ by at most one, as `torch.tensor_split` cuts them."""
    return [total // ranks + (rank < total % ranks) for rank in range(ranks)]


def sum_in_rank_order(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """((x0 + x1) + x2) + ... over all ranks, on every rank. x is not changed; the result has no gradient."""
    total = x.detach().clone(memory_format=torch.contiguous_format)
    flat = total.view(-1)
    lengths = even_lengths(flat.numel(), dist.get_world_size(group))
    Exchange(flat, lengths, group).add()
    start_gather(flat, lengths, group).wait()
    return total
