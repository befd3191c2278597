"""One norm three times: torch, Triton and CUDA C++, and torch.compile beside them, timed on the same GPU."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from groundup.kernels._dispatch import backend
from groundup.kernels.cuda.norm import traffic
from groundup.kernels.norm import rmsnorm

FLUSH_BYTES = 1 << 28
"""Written before every call: more than any L2 cache holds, so that each call finds its input in DRAM."""


@dataclass(frozen=True)
class Timing:
    """The median of the forward pass, and bytes that it had to move, per second. reason: why there is no time."""

    name: str
    seconds: float | None
    bytes_per_second: float | None
    reason: str | None = None


def compare_rmsnorm(
    rows: int = 16384, d: int = 4096, dtype: torch.dtype = torch.bfloat16, repeats: int = 50
) -> list[Timing]:
    """Forward passes of (rows, d). The implementations take turns. ValueError without a CUDA GPU."""
    if not torch.cuda.is_available():
        raise ValueError("compare_rmsnorm: no CUDA GPU here; it times kernels of one")
    x = torch.randn(rows, d, device="cuda").to(dtype)
    weight = torch.ones(d, device="cuda")
    moved = traffic(rows, d, x.element_size())
    found: dict[str, Callable[[], Tensor]] = {}
    reasons: dict[str, str] = {}
    for name, call in _calls(x, weight).items():
        try:
            call()
            found[name] = call
        except (ValueError, OSError, RuntimeError) as error:  # what is missing here is said, and does not stop the rest
            reasons[name] = str(error).splitlines()[0]
    times = interleaved(found, repeats)
    timings = [Timing(name, seconds, moved / seconds) for name, seconds in times.items()]
    return timings + [Timing(name, None, None, reason) for name, reason in reasons.items()]


def _calls(x: Tensor, weight: Tensor) -> dict[str, Callable[[], Tensor]]:
    def under(name: str) -> Tensor:
        with backend(name):
            return rmsnorm(x, weight)

    compiled = torch.compile(rmsnorm.reference)
    return {
        "torch": partial(under, "reference"),
        "torch.compile": partial(compiled, x, weight),
        "triton": partial(under, "triton"),
        "cuda": partial(under, "cuda"),
    }


def interleaved(calls: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, by CUDA events, with a cold L2 cache."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            begin.record()
            call()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end) / 1e3)
    return {name: statistics.median(values) for name, values in times.items()}
