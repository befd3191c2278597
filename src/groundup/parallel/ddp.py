"""Data parallelism: each rank has the whole model and some of the batch, and gradients are summed over ranks.

    stage 1, naive        one message per parameter, after the backward pass       pays a latency for each
    stage 2, flat         one message for all                                      pays the latency once
    stage 3, overlapped   buckets, sent while earlier layers still compute         hides what it pays

    backward     [ layer 3 ][ layer 2 ][ layer 1 ]
    naive                                         [w3][b3][w2][b2][w1][b1]
    flat                                          [     all     ]
    overlapped              [   3   ][   2   ]    [   1   ]

All three give the same bits: sums are taken in rank order (`rank_order.py`), so N ranks train as one process that
accumulates N micro-batches. Gradients are *summed*: losses are sums over tokens, and who divides by the number of
tokens of all ranks gets the mean over tokens however unevenly ranks have them. `mean=True` divides by the number of
ranks instead, which is right when all ranks have as many.

Per step and rank 2 (N - 1) / N of the gradients' bytes are sent, and as many received, with one number more per
parameter that says whether it was used (`buckets.py`).

Li et al. 2020, "PyTorch Distributed" (arXiv:2006.15704).
"""

from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from groundup.parallel.buckets import (
    BUCKET_BYTES,
    Overlap,
    Reduction,
    make_buckets,
    pack,
    packed_length,
    run,
    trainable,
    unpack,
)
from groundup.parallel.rank_order import Exchange, even_lengths, start_gather
from groundup.parallel.replicate import replicate


def sum_gradients_naive(model: nn.Module, group: dist.ProcessGroup | None = None, *, mean: bool = False) -> None:
    """Replace every gradient by its sum over ranks, one parameter after the other. Call it after the backward pass.

    The models must be the same on all ranks (`replicate`). A parameter that only other ranks used gets their
    gradient; one that nobody used keeps None.
    """
    for p in trainable(model):
        run([sum_bucket([p], group, mean)])


def sum_gradients_flat(model: nn.Module, group: dist.ProcessGroup | None = None, *, mean: bool = False) -> None:
    """The same in one message per dtype; it needs room for all gradients twice more."""
    for bucket in make_buckets(trainable(model), float("inf")):
        run([sum_bucket(bucket, group, mean)])


class DDP:
    """The same, overlapped with the backward pass of any model, by hooks on its parameters.

        ddp = DDP(model)                          # rank 0's weights everywhere; names stay what they are
        for batch in micro_batches[:-1]:
            with ddp.no_sync():                   # only the last backward pass communicates
                loss(model, batch).backward()
        loss(model, micro_batches[-1]).backward()
        ddp.finish()                              # every .grad is now the sum over ranks
        optimizer.step()

    Every rank calls `finish` once per step, also one that had no batch. Parameters that a rank did not use count as
    zeros; those that nobody used keep None. Which parameters are frozen and how they are tied is read here: change it
    before. A second backward pass outside of `no_sync` raises RuntimeError. Raises ValueError where the ranks' models
    differ, naming rank and parameter.

    bucket_bytes: how much is sent at once. Up to three buckets are under way, and each takes its size twice.
    """

    def __init__(
        self,
        model: nn.Module,
        group: dist.ProcessGroup | None = None,
        *,
        mean: bool = False,
        bucket_bytes: int = BUCKET_BYTES,
    ):
        replicate(model, group)
        buckets = make_buckets(trainable(model), bucket_bytes)
        self._overlap = Overlap(buckets, lambda bucket: sum_bucket(bucket, group, mean))

    def finish(self) -> None:
        """Wait until every gradient is the sum over ranks."""
        self._overlap.finish()

    def no_sync(self) -> AbstractContextManager[None]:
        """A context whose backward passes only add to this rank's gradients."""
        return self._overlap.no_sync()

    def remove(self) -> None:
        """Leave the model as it was before."""
        self._overlap.remove()


def sum_bucket(params: list[nn.Parameter], group: dist.ProcessGroup | None, mean: bool = False) -> Reduction:
    """All-reduce of one bucket: send pieces; add those of the own piece; hand the sums round.

    Two terms have the same sum in either order, so two ranks leave it to the library, which needs nobody in between.
    """
    size = dist.get_world_size(group)
    flat = torch.cat(pack(params))
    if size == 2:
        work = dist.all_reduce(flat, group=group, async_op=True)
        yield
        assert work is not None
        work.wait()
    else:
        yield from _sum_pieces(flat, even_lengths(packed_length(params), size), group)
    unpack(flat, params, size if mean else 1.0)


def _sum_pieces(flat: Tensor, lengths: list[int], group: dist.ProcessGroup | None) -> Reduction:
    exchange = Exchange(flat, lengths, group)
    yield
    exchange.add()
    gathering = start_gather(flat, lengths, group)
    yield
    gathering.wait()
