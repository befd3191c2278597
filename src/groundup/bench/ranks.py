"""Ranks of one process group on this machine, each of them a worker of its own (`worker.py`)."""

import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from groundup.bench.worker import Worker


def run_on_ranks(
    program: Path, ranks: int, units: int, options: Mapping[str, Any], *, timeout: float = 600.0
) -> list[dict[str, Any]]:
    """What `run(units)` of the program returned on each rank, with the facts that `prepare` gave.

    The program is to call `join` with its options. timeout: seconds after which a rank is given up.
    """
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(ranks) as pool, ExitStack() as stack:
        common = {"store": f"{folder}/store", "ranks": ranks, "timeout": timeout, **options}
        # Each waits for all others to begin, so they are begun, and told to run, at the same time.
        begun = [
            pool.submit(Worker, sys.executable, program, {**common, "rank": rank}, timeout=timeout)
            for rank in range(ranks)
        ]
        for future in begun:
            if future.exception() is None:
                stack.enter_context(future.result())
        workers = [future.result() for future in begun]
        answers = list(pool.map(lambda worker: worker.run(units), workers))
    return [{**worker.facts, **answer} for worker, answer in zip(workers, answers, strict=True)]


def join(options: Mapping[str, Any]) -> None:
    """Be the rank that the options say, of a gloo group, with one thread."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{options['store']}",
        rank=options["rank"],
        world_size=options["ranks"],
        timeout=timedelta(seconds=options["timeout"]),
    )
