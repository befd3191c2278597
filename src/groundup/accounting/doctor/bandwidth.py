"""How fast memory and each level of cache deliver: one working set after the other, from kilobytes to many megabytes.

A working set that fits into a cache is read at that cache's rate, so the rates fall in steps where it outgrows one.
"""

import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from groundup.accounting.doctor.matmul import fastest
from groundup.accounting.doctor.system import Cache
from groundup.device import physical_cores

Loop = Callable[[np.ndarray, int], int]
SMALLEST, MEMORY_BYTES = 2**13, 2**28
LAUNCHED = 2**25  # bytes: smaller sets show the time in which a GPU starts a kernel, and no cache
LEAST_READ = 2**21  # bytes between two looks at the clock: its own cost then does not count
FULL = 0.75  # of a cache: the rest holds the stack, the code, and what other programs left


@dataclass(frozen=True)
class Memory:
    """Bytes per second of main memory, all cores together; `copy` counts what is read and what is written."""

    read: float
    write: float
    copy: float


@dataclass(frozen=True)
class Reading:
    """A working set of so many bytes, read again and again by one core (or the GPU), at so many bytes per second."""

    bytes: int
    bandwidth: float


@dataclass(frozen=True)
class Level:
    """A cache, or main memory, with the median rate of the working sets that only it could hold; None if none was."""

    name: str
    bytes: int
    bandwidth: float | None


def memory_bandwidth(device: torch.device, seconds: float, copied: float | None = None) -> Memory:
    """Read, write and copy of 256 MiB, which no cache but the largest servers' holds.

    `copied` is the rate of copies where it is known already: then it is not measured again.
    """
    source = torch.ones(MEMORY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    each = seconds / (3 if copied is None else 2)
    loop = _compiled_loop() if device.type == "cpu" else None
    read = fastest(device, source.sum, each) if loop is None else _read_by_all(loop, source, each)
    return Memory(
        read=MEMORY_BYTES / read,
        write=MEMORY_BYTES / fastest(device, lambda: target.fill_(1.0), each),
        copy=copied or 2 * MEMORY_BYTES / fastest(device, lambda: target.copy_(source), each),
    )


def _compiled_loop() -> Loop | None:
    """The loop, compiled before any clock runs; None where Numba does not work: `check_software.numba` says why."""
    try:
        loop = importlib.import_module("groundup.accounting.doctor.compiled").read
        loop(np.ones(8, dtype=np.int64), 1)
    except Exception:  # whatever a broken installation raises
        return None
    return loop


def _read_by_all(loop: Loop, source: torch.Tensor, seconds: float) -> float:
    """Seconds in which all cores together read it once; the loop runs without the interpreter's lock."""
    parts = np.array_split(source.numpy().view(np.int64), physical_cores())
    with ThreadPoolExecutor(len(parts)) as pool:
        return fastest(torch.device("cpu"), lambda: list(pool.map(lambda part: loop(part, 1), parts)), seconds)


def working_sets(largest_cache: int) -> list[int]:
    """Powers of two from 8 KiB to four times the largest cache, at least 64 MiB and at most 512 MiB."""
    top = min(max(4 * largest_cache, 2**26), 2**29)
    return [2**power for power in range(SMALLEST.bit_length() - 1, top.bit_length())]


def sweep(device: torch.device, sizes: Sequence[int], seconds: float) -> list[Reading]:
    """The rate at which each working set is read, the smallest first."""
    if device.type != "cpu":
        return [_read_on_accelerator(device, size, seconds / len(sizes)) for size in sizes]
    if (loop := _compiled_loop()) is None:
        return []
    numbers = np.ones(max(sizes) // 8, dtype=np.int64)
    return [_read_by_one(loop, numbers[: size // 8], seconds / len(sizes)) for size in sizes]


def _read_by_one(read: Loop, numbers: np.ndarray, seconds: float) -> Reading:
    passes, best = max(1, LEAST_READ // numbers.nbytes), float("inf")
    read(numbers, 1)
    deadline = time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < deadline:
        start = time.perf_counter()
        read(numbers, passes)
        best = min(best, time.perf_counter() - start)
    return Reading(numbers.nbytes, passes * numbers.nbytes / best)


def _read_on_accelerator(device: torch.device, size: int, seconds: float) -> Reading:
    """Many sums in a row, so that starting the next is hidden behind the one that runs (from some megabytes on)."""
    numbers, turns = torch.ones(size // 4, device=device), max(1, min(200, 2**30 // size))
    return Reading(size, turns * size / fastest(device, lambda: [numbers.sum() for _ in range(turns)], seconds))


def levels(caches: Sequence[Cache], readings: Sequence[Reading]) -> list[Level]:
    """Each data cache, then main memory, with its rate.

    A working set shows level n when it is larger than all of level n - 1 and leaves some of level n free, and
    main memory when it is at least twice the last cache.
    """
    found, below = [], 0
    held = [cache for cache in caches if cache.kind != "Instruction"]
    for number in sorted({cache.level for cache in held}):
        sizes = [cache.bytes for cache in held if cache.level == number]  # several where cores differ
        rates = [reading.bandwidth for reading in readings if below < reading.bytes <= FULL * min(sizes)]
        found.append(Level(f"L{number}", min(sizes), statistics.median(rates) if rates else None))
        below = max(below, *sizes)
    rates = [reading.bandwidth for reading in readings if caches and reading.bytes >= 2 * below]
    return [*found, Level("memory", 0, statistics.median(rates) if rates else None)]
