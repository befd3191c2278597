"""What this machine can do, measured in a few seconds: matmul rate per precision and thread count, memory speed."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from groundup.device import available_bytes, describe, physical_cores, synchronize

# Tokens in a batch by the two widths of a feed-forward layer: the matmul that most of a small model's time goes to.
GEMM_SHAPE = (4096, 512, 1408)
GPU_GEMM_SHAPE = (8192, 4096, 4096)
BANDWIDTH_BYTES = 256 * 2**20
ROUNDS = 4
FEWER_THREADS_MARGIN = 1.5


@dataclass(frozen=True)
class Machine:
    """Measured abilities. Rates are FLOP/s of one large matmul, bandwidth is bytes read plus written per second."""

    device: str
    name: str
    threads: int
    precision: str
    gemm_flops: dict[str, float]
    bandwidth: float
    memory_bytes: int

    @property
    def peak_flops(self) -> float:
        """The measured matmul rate in the chosen precision: the denominator of MFU."""
        return self.gemm_flops[f"{self.precision} x{self.threads}"]


def probe(device: torch.device, seconds: float = 3.0) -> Machine:
    """Measure `device` for about `seconds`, and choose the fastest precision and thread count.

    Only precisions that training is sound in take part: fp32 and bf16 (fp16 needs loss scaling, and is
    emulated on CPUs). The candidates take turns, so that a moment of other work on the machine does not decide.
    Leaves torch set to the chosen number of threads.
    """
    trials = [(dtype, n) for n in _thread_counts(device) for dtype in ("bf16", "fp32")]
    rates = {f"{dtype} x{n}": 0.0 for dtype, n in trials}
    for _ in range(ROUNDS):
        for dtype, n in trials:
            rate = gemm_rate(device, dtype, n, 0.7 * seconds / len(trials) / ROUNDS)
            rates[f"{dtype} x{n}"] = max(rates[f"{dtype} x{n}"], rate)
    precision, threads = choose(rates)
    if device.type == "cpu":
        torch.set_num_threads(threads)
    return Machine(
        device=str(device),
        name=describe(device),
        threads=threads,
        precision=precision,
        gemm_flops=rates,
        bandwidth=copy_bandwidth(device, 0.3 * seconds),
        memory_bytes=available_bytes(device),
    )


def choose(rates: dict[str, float]) -> tuple[str, int]:
    """(precision, threads): the precision that was fastest anywhere, then all threads unless fewer clearly win.

    When half of the cores look faster than all, another program is on the machine; it may leave, the choice stays.

    >>> choose({"bf16 x1": 5.2, "bf16 x2": 5.0, "fp32 x1": 2.6, "fp32 x2": 5.1})
    ('bf16', 2)
    """
    precision = max(rates, key=lambda name: rates[name]).partition(" x")[0]
    by_threads = {int(name.partition(" x")[2]): rate for name, rate in rates.items() if name.startswith(precision)}
    most = max(by_threads)
    worth = {n: rate if n == most else rate / FEWER_THREADS_MARGIN for n, rate in by_threads.items()}
    return precision, max(worth, key=lambda n: worth[n])


def _thread_counts(device: torch.device) -> list[int]:
    cores = physical_cores()
    return [torch.get_num_threads()] if device.type != "cpu" else sorted({cores, max(1, cores // 2)})


def gemm_rate(device: torch.device, precision: str, threads: int, seconds: float) -> float:
    """FLOP/s of a matmul at the shape of a feed-forward layer; the best of several short runs."""
    if device.type == "cpu":
        torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    rows, inner, columns = GEMM_SHAPE if device.type == "cpu" else GPU_GEMM_SHAPE
    a = torch.randn(rows, inner, device=device).to(dtype)
    b = torch.randn(columns, inner, device=device).to(dtype)
    return 2 * rows * inner * columns / _fastest(device, lambda: a @ b.T, seconds)


def copy_bandwidth(device: torch.device, seconds: float) -> float:
    """Bytes per second of a copy larger than the caches, read and write both counted."""
    source = torch.ones(BANDWIDTH_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return 2 * BANDWIDTH_BYTES / _fastest(device, lambda: target.copy_(source), seconds)


def _fastest(device: torch.device, work: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest repetition within the given time: the machine at its least disturbed."""
    work()
    synchronize(device)
    best, deadline = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < deadline:
        start = time.perf_counter()
        work()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def describe_machine(machine: Machine) -> str:
    """The measurements as lines of text."""
    rates = (f"  matmul {name:8} {rate / 1e9:9.0f} GFLOP/s" for name, rate in sorted(machine.gemm_flops.items()))
    chosen = f"  chosen: {machine.precision} on {machine.threads} thread{'s' if machine.threads > 1 else ''}"
    memory = f"  memory {machine.memory_bytes / 2**30:.1f} GiB free, copied at {machine.bandwidth / 1e9:.0f} GB/s"
    return "\n".join([f"{machine.name} ({machine.device})", *rates, memory, chosen])
