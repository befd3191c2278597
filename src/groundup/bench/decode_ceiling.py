"""What the machine can do at best, for `bench decode`: read memory on all threads, or multiply bfloat16 matrices."""

import inspect
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit

ARRAY_BYTES = 512 << 20
"""Far beyond any cache."""


def _sum(numbers: Any) -> Any:
    total = np.float32(0)
    for place in range(numbers.size):
        total += numbers[place]
    return total


def prepare(options: dict[str, Any]) -> tuple[dict[str, Any], Callable[[int], dict[str, Any]]]:
    threads = options["threads"]
    torch.set_num_threads(threads)
    return {"threads": threads}, _reading(threads) if options["ceiling"] == "memory" else _multiplying()


_compiled_sum = njit(nogil=True, fastmath=True)(inspect.unwrap(_sum))


def _reading(threads: int) -> Callable[[int], dict[str, Any]]:
    """Units are GB."""
    shares = np.array_split(np.ones(ARRAY_BYTES // 4, np.float32), threads)
    _compiled_sum(shares[0][:8])

    def run(units: int) -> dict[str, Any]:
        times = max(1, round(units * 1e9 / ARRAY_BYTES))
        started = time.perf_counter()
        for _ in range(times):
            readers = [threading.Thread(target=_compiled_sum, args=(share,)) for share in shares]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()
        seconds = (time.perf_counter() - started) * units * 1e9 / (times * ARRAY_BYTES)
        return {"peak_bytes": 0, "seconds": seconds}

    return run


def _multiplying() -> Callable[[int], dict[str, Any]]:
    """Units are 10 GFLOP, in the shape of a prompt through a layer."""
    x, weight = torch.randn(512, 1024).bfloat16(), torch.randn(4096, 1024).bfloat16()
    flop = 2 * x.numel() * weight.shape[0]

    def run(units: int) -> dict[str, Any]:
        times = max(1, round(units * 1e10 / flop))
        started = time.perf_counter()
        for _ in range(times):
            torch.nn.functional.linear(x, weight)
        return {"peak_bytes": 0, "seconds": (time.perf_counter() - started) * units * 1e10 / (times * flop)}

    return run
