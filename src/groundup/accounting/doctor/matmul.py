"""The rate of matrix products, type by type and over several shapes: the measured peak of this machine.

One shape is not a peak: a product may be too small to fill the machine or fit its tiles badly. The best of several
shapes is what MFU should be divided by, because then no model can be above it without being named.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from groundup.device import physical_cores, synchronize, use_onednn_fp32

Shape = tuple[int, int, int]
Product = Callable[[], object]

# (rows, inner, columns). The first is the one that says most; the others only see whether there is more to have.
CPU_SHAPES: tuple[Shape, ...] = ((4096, 512, 1408), (2048, 2048, 2048), (512, 512, 512))
GPU_SHAPES: tuple[Shape, ...] = ((8192, 4096, 4096), (8192, 8192, 8192), (2048, 2048, 2048))
SLOW_ON_CPUS = ("fp16", "fp8")  # emulated by most of them: these begin with the smallest shape
PATIENCE = 1.0  # seconds: what would take longer is not tried, and what did is not repeated
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

    `every_thread_count` measures each type on one core. One shape after the other is tried with all types in turn,
    so that a moment of other work on the machine does not decide about one of them.
    """
    cores = physical_cores() if device.type == "cpu" else 1
    alone = TYPES if every_thread_count else ("fp32", "bf16")
    trials = [(name, n) for name in types_for(device) for n in sorted({1, cores}) if n == cores or name in alone]
    each, best = seconds / len(trials) / len(CPU_SHAPES), dict[tuple[str, int], MatmulRate]()
    with _restored_threads():
        for turn in range(len(CPU_SHAPES)):
            for name, threads in trials:
                shape, known = shapes_for(device, name)[turn], best.get((name, threads))
                if known is None or worth_trying(known, shape):
                    best[name, threads] = better(known, measure(device, name, threads, shape, each))
    return list(best.values())


def shapes_for(device: torch.device, dtype: str) -> list[Shape]:
    """The shapes in the order in which they are tried."""
    if device.type != "cpu":
        return list(GPU_SHAPES)
    return sorted(CPU_SHAPES, key=work) if dtype in SLOW_ON_CPUS else list(CPU_SHAPES)


def worth_trying(known: MatmulRate, shape: Shape) -> bool:
    """Not where the type does not work, nor where two products would, by the rate so far, take too long."""
    return not known.error and 2 * work(shape) <= PATIENCE * known.flops


def better(one: MatmulRate | None, other: MatmulRate) -> MatmulRate:
    """The faster of two measurements."""
    return one if one is not None and one.flops >= other.flops else other


def types_for(device: torch.device) -> list[str]:
    """The types that make sense to try: oneDNN's fp32 is a CPU's, tf32 a CUDA GPU's."""
    left_out = {"cpu": {"tf32"}, "cuda": {"fp32 oneDNN"}}.get(device.type, {"tf32", "fp32 oneDNN", "int8", "fp8"})
    return [name for name in TYPES if name not in left_out]


def measure(device: torch.device, dtype: str, threads: int, shape: Shape, seconds: float) -> MatmulRate:
    """The rate of one type and shape, or why there is none."""
    if device.type == "cpu":
        torch.set_num_threads(threads)
    try:
        with _precision(dtype):
            rate = work(shape) / fastest(device, product(device, dtype, shape), seconds)
    except (RuntimeError, NotImplementedError, AttributeError, TypeError, ValueError) as error:
        return MatmulRate(dtype, threads, 0.0, None, _first_line(error))
    return MatmulRate(dtype, threads, rate, shape)


def work(shape: Shape) -> int:
    """FLOPs of a product: 2 x rows x inner x columns."""
    rows, inner, columns = shape
    return 2 * rows * inner * columns


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
