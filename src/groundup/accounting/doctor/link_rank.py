"""One process of a measurement of collectives; `links.collectives` starts several:

    python -m groundup.accounting.doctor.link_rank RANK BACKEND RANKS STORE_FILE SIZES

Rank 0 prints {"send": [[bytes, seconds], ...], "all-reduce": ..., ...}. In "send" every rank sends to the next one and
receives from the one before, as in a pipeline or a ring.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from groundup.device import synchronize

WARMUP, TURNS = 3, 15


def main(rank: int, backend: str, ranks: int, store: str, sizes: list[int]) -> None:
    """Join the group, measure, say."""
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    limit = timedelta(seconds=60)
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=limit)
    ways = {
        "send": _send, "all-reduce": _all_reduce, "all-gather": _all_gather, "reduce-scatter": _reduce_scatter,
        "all-to-all": _all_to_all,
    }  # fmt: skip
    found = {name: [[size, _median(way(size, device), device)] for size in sizes] for name, way in ways.items()}
    dist.barrier()
    if rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


def _all_reduce(size: int, device: torch.device) -> Callable[[], object]:
    numbers = torch.zeros(size // 4, device=device)
    return lambda: dist.all_reduce(numbers)


def _send(size: int, device: torch.device) -> Callable[[], object]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    numbers, arriving = (torch.zeros(size // 4, device=device) for _ in range(2))

    def send() -> None:
        for work in dist.batch_isend_irecv([
            dist.P2POp(dist.isend, numbers, (rank + 1) % ranks),
            dist.P2POp(dist.irecv, arriving, (rank - 1) % ranks),
        ]):  # fmt: skip
            work.wait()

    return send


def _all_gather(size: int, device: torch.device) -> Callable[[], object]:
    own, everyones = _part_and_whole(size, device)
    return lambda: dist.all_gather_into_tensor(everyones, own)


def _reduce_scatter(size: int, device: torch.device) -> Callable[[], object]:
    own, everyones = _part_and_whole(size, device)
    return lambda: dist.reduce_scatter_tensor(own, everyones)


def _all_to_all(size: int, device: torch.device) -> Callable[[], object]:
    _, everyones = _part_and_whole(size, device)
    arriving = torch.empty_like(everyones)
    return lambda: dist.all_to_all_single(arriving, everyones)


def _part_and_whole(size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    ranks = dist.get_world_size()
    own = torch.zeros(max(1, size // 4 // ranks), device=device)
    return own, torch.zeros(ranks * own.numel(), device=device)


def _median(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the middle one of several turns, which all ranks begin together."""
    seconds = []
    for _ in range(WARMUP + TURNS):
        dist.barrier()
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARMUP:])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], json.loads(sys.argv[5]))
