"""The device card: what this machine is and what it was measured to do, beside what its data sheet promises."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from groundup.accounting.devices import Device, recognise
from groundup.accounting.doctor import system
from groundup.accounting.doctor.bandwidth import (
    LAUNCHED,
    Level,
    Memory,
    Reading,
    levels,
    memory_bandwidth,
    sweep,
    working_sets,
)
from groundup.accounting.doctor.matmul import MatmulRate, matmul_rates
from groundup.device import available_bytes, describe, physical_cores

# Of the time for measuring.
MATMUL_SHARE, MEMORY_SHARE, SWEEP_SHARE = 0.55, 0.2, 0.25


@dataclass(frozen=True)
class Peak:
    """The rate that a share (MFU, MBU) is divided by: the larger of what was measured and what is promised.

    `raised`: more was measured than is promised, so that the promise cannot be the peak. `share`: measured / assumed,
    never above 1. Rates are FLOP/s, or bytes per second for memory.
    """

    what: str
    measured: float
    specified: float | None

    @property
    def assumed(self) -> float:
        return max(self.measured, self.specified or 0.0)

    @property
    def raised(self) -> bool:
        return self.specified is not None and self.measured > self.specified

    @property
    def share(self) -> float:
        return self.measured / self.assumed if self.assumed else 0.0


@dataclass(frozen=True)
class Card:
    """`cores`: of a CPU those that this process may use, of a GPU its multiprocessors. Memory in bytes."""

    name: str
    device: str
    cores: int
    logical_processors: int | None
    caches: tuple[system.Cache, ...]
    memory_bytes: int
    free_bytes: int
    rates: tuple[MatmulRate, ...]
    memory: Memory
    readings: tuple[Reading, ...]
    levels: tuple[Level, ...]
    specified: Device | None
    peaks: tuple[Peak, ...]


def examine(
    device: torch.device,
    seconds: float,
    *,
    full: bool = False,
    seen: Mapping[str, float] | None = None,
    copied: float | None = None,
) -> Card:
    """Read what there is to read, and measure for about `seconds`.

    `seen` are rates that `hardware.probe` measured ("bf16 x2" -> FLOP/s): a peak is not below any of them. `copied` is
    its rate of copies, which is not measured twice.
    """
    caches = _gpu_caches(device) if device.type == "cuda" else system.caches()
    known = system.cores()
    rates = matmul_rates(device, MATMUL_SHARE * seconds, every_thread_count=full)
    memory = memory_bandwidth(device, MEMORY_SHARE * seconds, copied)
    sizes = working_sets(max((cache.bytes for cache in caches), default=0))
    readings = sweep(device, sizes, SWEEP_SHARE * seconds)
    telling = [reading for reading in readings if device.type == "cpu" or reading.bytes >= LAUNCHED]
    specified = recognise(describe(device))
    return Card(
        name=describe(device),
        device=str(device),
        cores=_multiprocessors(device) or physical_cores(),
        logical_processors=known.logical if known and device.type == "cpu" else None,
        caches=tuple(caches),
        memory_bytes=_memory_bytes(device),
        free_bytes=available_bytes(device),
        rates=tuple(rates),
        memory=memory,
        readings=tuple(readings),
        levels=tuple(levels(caches, telling)),
        specified=specified,
        peaks=tuple(peaks(rates, memory, specified, seen or {})),
    )


def peaks(
    rates: Sequence[MatmulRate], memory: Memory, specified: Device | None, seen: Mapping[str, float]
) -> list[Peak]:
    """One of each type that works, whatever the number of threads, and one of the memory."""
    pairs = [*((rate.dtype, rate.flops) for rate in rates), *((name.partition(" x")[0], seen[name]) for name in seen)]
    best: dict[str, float] = {}
    for dtype, flops in pairs:
        if flops:
            best[dtype] = max(best.get(dtype, 0.0), flops)
    found = [Peak(name, rate, specified and specified.rate(name)) for name, rate in best.items()]
    moved = max(memory.read, memory.write, memory.copy)
    return [*found, Peak("memory", moved, specified and specified.bandwidth)]


def _gpu_caches(device: torch.device) -> list[system.Cache]:
    size = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
    return [system.Cache(2, "Unified", size, 1)] if size else []


def _multiprocessors(device: torch.device) -> int | None:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else None


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return system.meminfo().get("MemTotal", 0)
