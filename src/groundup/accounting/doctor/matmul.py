"""The rate of matrix products, type by type and over several shapes: the measured peak of this machine.

One shape is not a peak: a product may be too small to fill the machine or fit its tiles badly. The best of several
shapes is what MFU should be divided by, because then no model can be above it without being named.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from groundup.device import physical_cores, synchronize, use_onednn_fp32

Shape = tuple[int, int, int]
Product = Callable[[], object]

# (rows, inner, columns), the cheapest first: an emulated type is not asked for the others.
CPU_SHAPES: tuple[Shape, ...] = ((512, 512, 512), (4096, 512, 1408), (2048, 2048, 2048))
GPU_SHAPES: tuple[Shape, ...] = ((2048, 2048, 2048), (8192, 4096, 4096), (8192, 8192, 8192))
ROUNDS = 2
PATIENCE = 1.0  # seconds: what takes longer the first time is not run twice
TYPES = ("fp32", "fp32 oneDNN", "tf32", "bf16", "fp16", "int8", "fp8")


@dataclass(frozen=True)
class MatmulRate:
    """The best of the shapes that were tried: `flops` per second (int8: operations). 0 where the type does not work,
    and then `error` says why."""

    dtype: str
    threads: int
    flops: float
    shape: Shape | None = None
    error: str = ""


def matmul_rates(device: torch.device, seconds: float, *, every_thread_count: bool = False) -> list[MatmulRate]:
    """Every type on all cores, and fp32 and bf16 on one core too; `seconds` is divided among them.

    `every_thread_count` measures each type on one core.
    """
    cores = physical_cores() if device.type == "cpu" else 1
    alone = TYPES if every_thread_count else ("fp32", "bf16")
    trials = [(name, n) for name in types_for(device) for n in sorted({cores, 1}) if n == cores or name in alone]
    each, best = seconds / len(trials) / ROUNDS, {}
    with _restored_threads():
        for trial in ROUNDS * trials:  # they take turns, so that a moment of other work does not decide
            best[trial] = better(best.get(trial), measure(device, *trial, each))
    return list(best.values())


def better(one: MatmulRate | None, other: MatmulRate) -> MatmulRate:
    """The faster of two measurements."""
    return one if one is not None and one.flops >= other.flops else other


def types_for(device: torch.device) -> list[str]:
    """The types that make sense to try: oneDNN's fp32 is a CPU's, tf32 a CUDA GPU's."""
    left_out = {"cpu": {"tf32"}, "cuda": {"fp32 oneDNN"}}.get(device.type, {"tf32", "fp32 oneDNN", "int8", "fp8"})
    return [name for name in TYPES if name not in left_out]


def measure(
    device: torch.device, dtype: str, threads: int, seconds: float, shapes: Sequence[Shape] | None = None
) -> MatmulRate:
    """The rate of one type. A larger shape is left out when, by the rate so far, it would not fit into the time."""
    if device.type == "cpu":
        torch.set_num_threads(threads)
    shapes = shapes or (CPU_SHAPES if device.type == "cpu" else GPU_SHAPES)
    best, chosen, deadline = 0.0, None, time.perf_counter() + seconds
    try:
        for place, shape in enumerate(shapes):
            left = deadline - time.perf_counter()
            if best and 2 * work(shape) / best > left:
                break
            rate = _rate(device, dtype, shape, left / (len(shapes) - place))
            best, chosen = max((best, chosen), (rate, shape), key=lambda found: found[0])
    except (RuntimeError, NotImplementedError, AttributeError, TypeError, ValueError) as error:
        return MatmulRate(dtype, threads, best, chosen, _first_line(error))
    return MatmulRate(dtype, threads, best, chosen)


def work(shape: Shape) -> int:
    """FLOPs of a product: 2 x rows x inner x columns."""
    rows, inner, columns = shape
    return 2 * rows * inner * columns


def _rate(device: torch.device, dtype: str, shape: Shape, seconds: float) -> float:
    with _precision(dtype):
        return work(shape) / fastest(device, product(device, dtype, shape), seconds)


def product(device: torch.device, dtype: str, shape: Shape) -> Product:
    """A function that multiplies two matrices of this type; the right one is stored by columns, as weights are."""
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner, device=device), torch.randn(columns, inner, device=device)
    if dtype == "int8":
        left, right = (4 * a).to(torch.int8), (4 * b).to(torch.int8).T
        return lambda: torch._int_mm(left, right)  # pyright: ignore[reportPrivateImportUsage]
    if dtype == "fp8":
        one = torch.ones((), device=device)
        return _scaled(a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).T, one)
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(dtype, torch.float32)
    x, y = a.to(kind), b.to(kind).T
    return lambda: x @ y


def _scaled(left: Tensor, right: Tensor, one: Tensor) -> Product:
    multiply = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
    return lambda: multiply(left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def fastest(device: torch.device, run: Product, seconds: float) -> float:
    """Seconds of the fastest repetition within the given time, at least one after a first that is not counted.

    The first, which finds pages and prepares kernels, is counted only when it took so long that it must do.
    """
    deadline = time.perf_counter() + seconds
    first = _timed(device, run)
    best = first if first > max(seconds, PATIENCE) else float("inf")
    while best == float("inf") or time.perf_counter() < deadline:
        best = min(best, _timed(device, run))
    return best


def _timed(device: torch.device, run: Product) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


@contextmanager
def _precision(dtype: str) -> Iterator[None]:
    """fp32 products exactly so, unless the faster way is what is measured."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
        if dtype == "fp32 oneDNN":
            use_onednn_fp32()
            if torch.get_float32_matmul_precision() == "highest":
                raise ValueError("not used here: it would lower the precision (AMX or a GPU), or the CPU is unknown")
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
