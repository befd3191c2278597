"""The eight collectives over messages between neighbours in a ring: rank r sends to r + 1 and receives from r - 1.

All-reduce of three ranks, whose tensors are cut in three pieces: first a sum travels around for each piece
(reduce-scatter), then the sums travel around (all-gather).

    rank 0    a0 a1 a2        .  .  A2        A0 .  .         A0 A1 A2        A0 = b0 + c0 + a0
    rank 1    b0 b1 b2   ->   .  .  .    ->   .  A1 .    ->   A0 A1 A2        A1 = c1 + a1 + b1
    rank 2    c0 c1 c2        .  .  .         .  .  A2        A0 A1 A2        A2 = a2 + b2 + c2

Each of the 2 (n - 1) steps sends 1/n of the tensor from every rank at once, so a rank sends 2 (n - 1) / n of its size,
which is the least that is possible, however many ranks there are (Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce
algorithms for clusters of workstations"). What it costs is 2 (n - 1) latencies; `tree.py` has the algorithms for small
tensors.

`root` and all other ranks are those within the group. Arguments are not changed, results are new, contiguous and
without a gradient. `op(sum so far, own, out=...)` may be any of torch's elementwise functions, such as
`torch.maximum`; the order in which sums are taken stands with each function. A size that the number of ranks does not
divide is cut as `torch.tensor_split` does: the first pieces are one longer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from groundup.parallel.point_to_point import post

Op = Callable[..., Any]
Group = dist.ProcessGroup | None


def broadcast(x: Tensor, root: int = 0, group: Group = None) -> Tensor:
    """The root's x. The others give a tensor of its shape and dtype, whose values are not read.

    The n pieces follow each other down the ring, so that all links are busy at once; a rank sends x once.
    """
    rank, size = _place(group)
    x = x.detach()
    whole = _copy(x) if rank == root else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _pass_on(_pieces(whole.view(-1), size), (rank - root) % size, group)
    return whole


def reduce(x: Tensor, root: int = 0, group: Group = None, op: Op = torch.add) -> Tensor | None:
    """At the root the sum of every rank's x, elsewhere None. Taken from rank root + 1 around the ring to the root."""
    rank, size = _place(group)
    total = _copy(x.detach())
    _pass_on(_pieces(total.view(-1), size), (rank - root - 1) % size, group, op)
    return total if rank == root else None


def scatter(x: Tensor, root: int = 0, group: Group = None) -> Tensor:
    """Piece `rank` of the root's x, cut along its first axis. The others give a tensor of its shape and dtype.

    The root sends each piece to its rank: on the way around a ring it would only pass through others' hands.
    """
    rank, size = _place(group)
    pieces = _pieces(x.detach().contiguous(), size)
    if rank == root:
        post([(piece, peer) for peer, piece in enumerate(pieces) if peer != root], [], group).wait()
        return pieces[root].clone()
    own = torch.empty_like(pieces[rank])
    post([], [(own, root)], group).wait()
    return own


def gather(x: Tensor, root: int = 0, lengths: Sequence[int] | None = None, group: Group = None) -> Tensor | None:
    """At the root every rank's x, one after the other along the first axis; elsewhere None. `lengths` as below."""
    rank, size = _place(group)
    x, lengths = x.detach().contiguous(), _lengths(x, lengths, rank, size)
    if rank != root:
        post([(x, root)], [], group).wait()
        return None
    whole = x.new_empty(sum(lengths), *x.shape[1:])
    pieces = whole.split(list(lengths))
    pieces[root].copy_(x)
    post([], [(piece, peer) for peer, piece in enumerate(pieces) if peer != root], group).wait()
    return whole


def all_gather(x: Tensor, lengths: Sequence[int] | None = None, group: Group = None) -> Tensor:
    """Every rank's x on every rank, one after the other along the first axis; a rank sends all but one of them.

    lengths: each rank's length along that axis, where not all have this rank's. Raises ValueError where they
    contradict x.
    """
    rank, size = _place(group)
    lengths = _lengths(x, lengths, rank, size)
    whole = x.detach().new_empty(sum(lengths), *x.shape[1:])
    pieces = list(whole.split(list(lengths)))
    pieces[rank].copy_(x.detach())
    _gather_around(pieces, group)
    return whole


def reduce_scatter(x: Tensor, group: Group = None, op: Op = torch.add) -> Tensor:
    """Piece `rank`, along the first axis, of the sum of every rank's x. Piece i is summed from rank i + 1 around to i.

    A rank sends (n - 1) / n of x.
    """
    rank, size = _place(group)
    pieces = _pieces(_copy(x.detach()), size)
    _reduce_around(pieces, group, op)
    return pieces[rank].clone()


def all_reduce(x: Tensor, group: Group = None, op: Op = torch.add) -> Tensor:
    """The sum of every rank's x on every rank: a reduce-scatter and an all-gather, of n pieces of the flat tensor.

    Piece i is summed from rank i + 1 around to i, so all ranks have the same bits, but other numbers of ranks others.
    """
    total = _copy(x.detach())
    pieces = _pieces(total.view(-1), dist.get_world_size(group))
    _reduce_around(pieces, group, op)
    _gather_around(pieces, group)
    return total


def all_to_all(
    x: Tensor, sent: Sequence[int] | None = None, received: Sequence[int] | None = None, group: Group = None
) -> Tensor:
    """What all ranks have for this one, one after the other along the first axis, cut out of their x.

    sent: how many rows of x go to each rank; received: how many come from each. Without them every rank's x has the
    same length, and is cut evenly. In step k each rank sends to the one k further, so that none is sent to by two.
    Raises ValueError where the numbers contradict x.
    """
    rank, size = _place(group)
    x = x.detach().contiguous()
    sent = [len(piece) for piece in _pieces(x, size)] if sent is None else list(sent)
    received = [sent[rank]] * size if received is None else list(received)
    if sum(sent) != len(x) or {len(sent), len(received)} != {size} or sent[rank] != received[rank]:
        raise ValueError(
            f"all_to_all: rank {rank} of {size} sends {sent} of {len(x)} rows and receives {received}: expected a "
            "number per rank, as many rows as x has, and the same number from itself as to itself"
        )
    result = x.new_empty(sum(received), *x.shape[1:])
    outgoing, incoming = x.split(sent), result.split(received)
    incoming[rank].copy_(outgoing[rank])
    for step in range(1, size):
        to, source = (rank + step) % size, (rank - step) % size
        post([(outgoing[to], to)], [(incoming[source], source)], group).wait()
    return result


def _reduce_around(pieces: list[Tensor], group: Group, op: Op) -> None:
    """Of every rank's pieces[r], the sum, in pieces[r] of rank r; the others are left as partial sums."""
    rank, size = _place(group)
    room = torch.empty_like(pieces[0])
    for step in range(1, size):
        own = pieces[(rank - step - 1) % size]
        arriving = room[: len(own)]
        post([(pieces[(rank - step) % size], (rank + 1) % size)], [(arriving, (rank - 1) % size)], group).wait()
        op(arriving, own, out=own)


def _gather_around(pieces: list[Tensor], group: Group) -> None:
    """pieces[r] of rank r, in pieces[r] of every rank."""
    rank, size = _place(group)
    for step in range(size - 1):
        sent, received = pieces[(rank - step) % size], pieces[(rank - step - 1) % size]
        post([(sent, (rank + 1) % size)], [(received, (rank - 1) % size)], group).wait()


def _pass_on(pieces: list[Tensor], place: int, group: Group, op: Op | None = None) -> None:
    """Pieces go from place 0 of the ring to the last, each sent on while the next arrives; `op` adds to them."""
    rank, size = _place(group)
    room = torch.empty_like(pieces[0])
    for step in range(size + 1):
        sends = [(pieces[step - 1], (rank + 1) % size)] if step > 0 and place < size - 1 else []
        if step == size or place == 0:
            post(sends, [], group).wait()
            continue
        own = pieces[step]
        arriving = own if op is None else room[: len(own)]
        post(sends, [(arriving, (rank - 1) % size)], group).wait()
        if op is not None:
            op(arriving, own, out=own)


def _place(group: Group) -> tuple[int, int]:
    return dist.get_rank(group), dist.get_world_size(group)


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _pieces(x: Tensor, size: int) -> list[Tensor]:
    return list(x.tensor_split(size))


def _lengths(x: Tensor, lengths: Sequence[int] | None, rank: int, size: int) -> Sequence[int]:
    lengths = [len(x)] * size if lengths is None else lengths
    if len(lengths) != size or lengths[rank] != len(x):
        raise ValueError(f"lengths {list(lengths)} for {size} ranks, but x of rank {rank} has length {len(x)}")
    return lengths
