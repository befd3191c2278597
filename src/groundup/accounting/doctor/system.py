"""What Linux says about the machine in /proc and /sys. What is missing or makes no sense there is None or left out.

Every function takes the folder that stands for `/`, so that a made-up machine can be read like a real one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Cache:
    """One level of a processor's caches. `kind` is Data, Instruction or Unified, `bytes` those of each instance."""

    level: int
    kind: str
    bytes: int
    instances: int


@dataclass(frozen=True)
class Cores:
    """`logical` processors that the system runs, on `physical` cores: two for one core with hyper-threading."""

    logical: int
    physical: int


def caches(root: Path = ROOT) -> list[Cache]:
    """The caches of all processors, smallest level first; an empty list where the system does not tell."""
    instances: dict[tuple[int, str, int], set[str]] = {}
    for folder in sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cache/index[0-9]*")):
        level, size = whole(_line(folder / "level")), size_bytes(_line(folder / "size"))
        kind, shared = _line(folder / "type") or "Unified", _line(folder / "shared_cpu_list")
        if level and size:
            instances.setdefault((level, kind, size), set()).add(shared or str(folder.parent))
    return [Cache(*key, len(found)) for key, found in sorted(instances.items())]


def size_bytes(text: str | None) -> int | None:
    """Bytes from what the kernel writes.

    >>> size_bytes("48K"), size_bytes("32M"), size_bytes("much")
    (49152, 33554432, None)
    """
    match = re.fullmatch(r"(\d+)([KMG]?)", (text or "").strip(), re.ASCII)
    return int(match[1]) * UNITS[match[2]] if match else None


def cores(root: Path = ROOT) -> Cores | None:
    """Processors and the cores that they share."""
    places = [
        (_line(topology / "physical_package_id"), core)
        for topology in root.glob("sys/devices/system/cpu/cpu[0-9]*/topology")
        if (core := _line(topology / "core_id")) is not None
    ]
    return Cores(len(places), len(set(places))) if places else None


def load_average(root: Path = ROOT) -> float | None:
    """Processes that ran or wanted to, averaged over the last minute."""
    words = (_line(root / "proc/loadavg") or "").split()
    return number(words[0]) if words else None


def cpu_flags(root: Path = ROOT) -> frozenset[str]:
    """Instruction sets, by the kernel's names: `avx512f`, `avx512_bf16`, `amx_tile`; `Features` on ARM."""
    for line in _lines(root / "proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def meminfo(root: Path = ROOT) -> dict[str, int]:
    """/proc/meminfo in bytes: MemTotal, MemAvailable, SwapTotal and so on. Lines that are no sizes are left out."""
    pairs = (re.match(r"(\w+):\s*(\d+) kB", line) for line in _lines(root / "proc/meminfo"))
    return {pair[1]: int(pair[2]) * 1024 for pair in pairs if pair}


def huge_pages(root: Path = ROOT) -> str | None:
    """Transparent huge pages: always, madvise or never, the word that is in brackets."""
    match = re.search(r"\[(\w+)\]", _line(root / "sys/kernel/mm/transparent_hugepage/enabled") or "")
    return match[1] if match else None


def cpu_quota(root: Path = ROOT) -> float | None:
    """Cores' worth of time that the container may use (cgroup v2); None without a limit."""
    words = (_line(root / "sys/fs/cgroup/cpu.max") or "").split()
    quota, period = (number(word) for word in words) if len(words) == 2 else (None, None)
    return quota / period if quota and period else None


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that the container may use (cgroup v2); None without a limit."""
    return whole(_line(root / "sys/fs/cgroup/memory.max"))


def memory_used(root: Path = ROOT) -> int:
    """Bytes that the container holds (cgroup v2), without files that it could forget; 0 where it is not said."""
    held = whole(_line(root / "sys/fs/cgroup/memory.current")) or 0
    stat = dict(line.split() for line in _lines(root / "sys/fs/cgroup/memory.stat") if len(line.split()) == 2)
    return max(0, held - (whole(stat.get("inactive_file")) or 0))


def driver(root: Path = ROOT) -> str | None:
    """Version of NVIDIA's kernel module, where it is loaded."""
    match = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", _line(root / "proc/driver/nvidia/version") or "")
    return match[1] if match else None


def whole(text: str | None) -> int | None:
    """A whole number of at least 0, else None."""
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def number(text: str) -> float | None:
    """A finite number of at least 0, else None."""
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) else None


def _line(path: Path) -> str | None:
    return next(_lines(path), None)


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return
