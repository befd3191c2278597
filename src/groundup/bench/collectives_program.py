"""One rank of `bench collectives`: every all-reduce in turn, at every size; a program of `worker.py`."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from groundup.bench.ranks import join
from groundup.parallel import ring, sum_in_rank_order, tree

TURN_SECONDS = 0.01
MOST_CALLS = 100


def torchs_own(x: Tensor) -> Tensor:
    """torch.distributed's, into a new tensor as ours."""
    total = x.clone()
    dist.all_reduce(total)
    return total


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch": torchs_own,
    "ring": ring.all_reduce,
    "rank order": sum_in_rank_order,
    "tree": tree.all_reduce,
}


def prepare(options: dict[str, Any]) -> tuple[dict[str, Any], Callable[[int], dict[str, Any]]]:
    join(options)
    return {"torch": torch.__version__}, lambda rounds: {"measured": [measure(n, rounds) for n in options["sizes"]]}


def measure(size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of one call, per way and round, of the slowest rank. Ways take turns, each beginning together."""
    x = torch.ones(size // 4)
    ranks, names, seconds = dist.get_world_size(), list(WAYS), []
    for name, way in WAYS.items():
        if not torch.equal(way(x), ranks * x):
            raise AssertionError(f"{name} of {size} bytes is no sum over ranks")
    calls = [_calls(WAYS[name], x) for name in names]
    for turn in range(rounds):
        for number in [*range(turn % len(names), len(names)), *range(turn % len(names))]:
            dist.barrier()
            begun = time.perf_counter()
            for _ in range(calls[number]):
                WAYS[names[number]](x)
            seconds.append((number, (time.perf_counter() - begun) / calls[number]))
    slowest = torch.tensor([value for _, value in seconds], dtype=torch.float64)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    found: dict[str, list[float]] = {name: [] for name in names}
    for (number, _), value in zip(seconds, slowest.tolist(), strict=True):
        found[names[number]].append(value)
    return found


def _calls(way: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """How many fill a turn; rank 0 decides for all."""
    begun = time.perf_counter()
    way(x)
    calls = torch.tensor(TURN_SECONDS / (time.perf_counter() - begun))
    dist.broadcast(calls, 0)
    return max(1, min(MOST_CALLS, round(float(calls))))
