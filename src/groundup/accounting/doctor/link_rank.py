"""One process of a measurement of collectives; `links.collectives` starts several:

    python -m groundup.accounting.doctor.link_rank RANK BACKEND RANKS STORE_FILE SIZES

Rank 0 prints {"all-reduce": [[bytes, seconds], ...], "all-gather": ...}.
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
    found = {
        "all-reduce": [[size, _median(_all_reduce(size, device), device)] for size in sizes],
        "all-gather": [[size, _median(_all_gather(size, ranks, device), device)] for size in sizes],
    }
    dist.barrier()
    if rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


def _all_reduce(size: int, device: torch.device) -> Callable[[], object]:
    numbers = torch.zeros(size // 4, device=device)
    return lambda: dist.all_reduce(numbers)


def _all_gather(size: int, ranks: int, device: torch.device) -> Callable[[], object]:
    own = torch.zeros(max(1, size // 4 // ranks), device=device)
    everyones = torch.empty(ranks * own.numel(), device=device)
    return lambda: dist.all_gather_into_tensor(everyones, own)


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
