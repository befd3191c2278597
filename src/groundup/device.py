"""What this process runs on, and the only place that touches global torch state."""

import contextlib
import ctypes
import gc
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from groundup.environ import env, set_default


def rank() -> int:
    """This process's number among those that torchrun started; 0 alone."""
    return int(env("RANK", "0") or 0)


def world_size() -> int:
    """How many processes torchrun started; 1 alone."""
    return int(env("WORLD_SIZE", "1") or 1)


def default_device() -> torch.device:
    """The fastest device here: CUDA (this rank's), then Apple's MPS, then the CPU.

    `GROUNDUP_DEVICE` overrides it; a device that is named but absent is an error, never a silent fallback.
    """
    if named := env("GROUNDUP_DEVICE"):
        return require_device(named)
    if torch.cuda.is_available():
        return torch.device("cuda", int(env("LOCAL_RANK", "0") or 0))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def require_device(name: str) -> torch.device:
    """The named device, or a ValueError that says why it cannot be had."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r}: expected cpu, mps, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r}: this torch ({torch.__version__}) sees no CUDA GPU; use cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {name!r}: no Apple GPU here; use cpu")
    return device


def set_seed(seed: int) -> None:
    """Seed torch's global generators. Initialisation and data order have generators of their own."""
    torch.manual_seed(seed)


def random_state(device: torch.device) -> list[torch.Tensor]:
    """Of torch's global generators that a step on `device` draws from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(state: list[torch.Tensor], device: torch.device) -> None:
    """Put back what `random_state` said."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def deterministic(on: bool = True) -> None:
    """Ask torch for deterministic algorithms everywhere; an operation that has none then raises."""
    if on:
        set_default("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on)


def use_onednn_fp32(on: bool = True) -> None:
    """On CPUs without AMX, route fp32 matmuls to oneDNN: the result stays fp32-accurate and takes half the time.

    "medium" precision really lowers precision on a GPU or with AMX, so it is refused there.
    """
    has_amx = "amx" in _cpu_flags()
    if on and (torch.cuda.is_available() or has_amx or not _cpu_flags()):
        return
    torch.set_float32_matmul_precision("medium" if on else "highest")


def physical_cores() -> int:
    """Cores that this process may use (its affinity mask), at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def synchronize(device: torch.device) -> None:
    """Wait for everything queued on `device`; nothing to do on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new measurement for `peak_memory_bytes`, where the system can (CUDA, Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """Peak bytes since `reset_peak_memory`: of the allocator on CUDA, of the resident process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


CACHE_LINE = 64
"""Bytes that a processor fetches at once."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h


def keep_memory() -> bool:
    """Let freed memory stay with this process until `release_memory`, where its C library can (glibc); whether it does.

    A training step on a CPU frees what it took, and takes the same again in the next one. By itself glibc hands large
    blocks and the heap's end back each time, and every page of them is then found and filled with zeros anew: 60,000
    page faults and a tenth of a step's time at 13 M parameters (experiment 018). The peak stays what it was; between
    two peaks others have less. All threads share one heap, as the others' are unmapped when they are empty. An owner's
    own `GLIBC_TUNABLES` or `MALLOC_..._` are left as they are.
    """
    owners = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    if not sys.platform.startswith("linux") or any(env(name) for name in owners):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    mallopt(_M_ARENA_MAX, 1)
    # Older versions of glibc keep no blocks of more than 32 MiB.
    blocks = any(mallopt(_M_MMAP_THRESHOLD, most) == 1 for most in (2**30, 2**25))
    return blocks and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) == 1


def release_memory() -> None:
    """Give freed memory back to the system, where its C library can (glibc), so that a next peak is its own."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: Windows has no library without a name
        ctypes.CDLL(None).malloc_trim(0)


def line_aligned_zeros(size: int) -> torch.Tensor:
    """`size` bytes of zeros on the CPU from the beginning of a cache line on, in large pages where the system has them.

    numpy asks for large pages from 4 MB on, and torch does not. Memory that lies in small ones has an address to look
    up every 4 KB; after a loop that has read far more than the caches hold, that takes longer than to read the page.
    """
    memory = torch.from_numpy(np.zeros(size + CACHE_LINE, np.uint8))
    start = -memory.data_ptr() % CACHE_LINE
    return memory[start : start + size]


def resident_bytes() -> int:
    """Bytes of memory that this process holds now; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def available_bytes(device: torch.device) -> int:
    """Free memory on `device` (for the CPU: what the system could still give), 0 if unknown."""
    if device.type == "cuda":  # what torch's allocator keeps for later is free, too
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 0
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def describe(device: torch.device) -> str:
    """A person's name for the device: the GPU's, or the CPU's with its number of usable cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()} ({physical_cores()} cores)" + (" + Apple GPU" if device.type == "mps" else "")


def environment() -> dict[str, Any]:
    """What a reader needs to repeat a run: versions, machine, threads, and the code's commit."""
    packages = ("groundup", "torch", "numpy", "safetensors", "regex", "triton", "numba")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": physical_cores(),
        "threads": torch.get_num_threads(),
        "device": describe(default_device()),
        "cuda": torch.version.cuda,
        "versions": {name: v for name in packages if (v := _version(name))},
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    lines = (line for line in path.read_text().splitlines() if line.startswith(key))
    return next(lines, ":").partition(":")[2].strip()


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> str:
    return _cpuinfo("flags")
