"""What the system grants: time on the cores, memory, files, disk. None of this needs torch to compute anything."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import torch

from groundup.accounting.doctor import system
from groundup.accounting.doctor.check import Check, mebibytes
from groundup.device import physical_cores
from groundup.environ import env
from groundup.files import is_full

LEAST_SHM, LEAST_FILES = 2**29, 1024
SCARCE_DISK, LEAST_DISK = 5 * 2**30, 2**28
SLOW_DISK, WRITTEN = 50e6, 2**26
SCARCE_MEMORY = 2**30


def system_checks(folder: Path, root: Path = system.ROOT) -> list[Check]:
    """All of them; `folder` is where runs are written, `root` the folder that stands for / (for tests)."""
    return [
        other_load(root),
        threads(root),
        free_memory(root),
        huge_pages(root),
        shared_memory(root),
        open_files(),
        disk(folder),
    ]


def other_load(root: Path = system.ROOT, usable: int | None = None) -> Check:
    """Other programs take time on the cores, and what is measured beside them is too low."""
    load, usable = system.load_average(root), usable or physical_cores()
    if load is None:
        return Check("other load", "absent", "this system does not say how busy it is")
    why = f"load average {load:.1f} on {usable} usable cores"
    if load > usable:
        return Check("other load", "warning", f"{why}: the rates measured here are doubtful",
                     "end the other programs, wait a minute, and measure again")  # fmt: skip
    return Check("other load", "ok", why)


def threads(root: Path = system.ROOT, usable: int | None = None, used: int | None = None) -> Check:
    """As many threads as cores: more wait for one another, fewer leave cores idle."""
    usable, used = usable or physical_cores(), used or torch.get_num_threads()
    quota, named = system.cpu_quota(root), env("OMP_NUM_THREADS")
    setting = f"OMP_NUM_THREADS={named}" if named else "OMP_NUM_THREADS is not set"
    why = f"torch uses {used} threads, this process may use {usable} cores; {setting}"
    if quota is not None and quota < used:
        return Check("threads", "warning", f"{why}; the container may use {quota:g} cores' time",
                     f"export OMP_NUM_THREADS={max(1, int(quota))}: more threads are stopped in turn")  # fmt: skip
    if used > usable:
        return Check("threads", "warning", why, f"export OMP_NUM_THREADS={usable}")
    found = system.cores(root)
    if found and found.logical > found.physical and used > found.physical:
        return Check("threads", "warning", f"{why}, but there are {found.physical} physical ones",
                     f"try OMP_NUM_THREADS={found.physical}: threads of one core share its arithmetic")  # fmt: skip
    if used < usable and named:
        return Check("threads", "warning", why, "unset OMP_NUM_THREADS to use all cores, unless others need them")
    return Check("threads", "ok", why)


def free_memory(root: Path = system.ROOT) -> Check:
    """What could be taken now, by the system and by the container's limit."""
    told, limit = system.meminfo(root), system.memory_limit(root)
    if "MemAvailable" not in told:
        return Check("memory", "absent", "this system does not say how much memory is free")
    free, total = told["MemAvailable"], told.get("MemTotal", 0)
    why = f"{mebibytes(free)} of {mebibytes(total)} free"
    if limit is not None and limit < total:
        why = f"{why}; the container may use {mebibytes(limit)}"
        free = min(free, max(0, limit - system.memory_used(root)))
    if free < SCARCE_MEMORY:
        return Check("memory", "warning", why, "end other programs, or train with a smaller batch")
    return Check("memory", "ok", why)


def huge_pages(root: Path = system.ROOT) -> Check:
    """2 MiB pages instead of 4 KiB: fewer look-ups of addresses in large tensors."""
    word = system.huge_pages(root)
    if word is None:
        return Check("huge pages", "absent", "this system has no transparent huge pages, or does not tell")
    if word == "never":
        return Check("huge pages", "warning", "transparent huge pages are off: large tensors are read a little slower",
                     "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled")  # fmt: skip
    return Check("huge pages", "ok", f"transparent huge pages: {word}")


def shared_memory(root: Path = system.ROOT) -> Check:
    """/dev/shm: processes of one machine exchange gradients and batches there."""
    try:
        size = shutil.disk_usage(root / "dev/shm").total
    except OSError:
        return Check("/dev/shm", "absent", "there is no /dev/shm; programs of several processes use files instead")
    if size < LEAST_SHM:
        return Check("/dev/shm", "warning", f"only {mebibytes(size)}: training by several processes may run out of it",
                     "start the container with --shm-size=8g")  # fmt: skip
    return Check("/dev/shm", "ok", mebibytes(size))


def open_files() -> Check:
    """Memory-mapped shards and connections each take one."""
    try:
        import resource
    except ImportError:
        return Check("open files", "absent", "this system has no such limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= LEAST_FILES:
        return Check("open files", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft:,}")
    allowed = "" if hard == resource.RLIM_INFINITY else f" (at most {hard})"
    return Check("open files", "warning", f"at most {soft:,}: a text of many shards may not open",
                 f"ulimit -n 65536{allowed}")  # fmt: skip


def disk(folder: Path) -> Check:
    """Free space and the speed of writing that is really on the disk (fsync), where runs will be written."""
    there = next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), Path.cwd())
    try:
        speed, free = write_speed(there), shutil.disk_usage(there).free
    except OSError as error:
        fix = "free some space there" if is_full(error) else "choose another folder with --folder, or change its rights"
        return Check("disk", "broken", f"{there}: cannot be written to ({error.strerror or error})", fix)
    why = f"{there}: {mebibytes(free)} free, written at {speed / 1e6:,.0f} MB/s"
    if free < LEAST_DISK:
        return Check("disk", "broken", why, "free some space there, or choose another folder with --folder")
    if free < SCARCE_DISK:
        return Check("disk", "warning", why, "free some space: checkpoints are three times the size of the weights")
    if speed < SLOW_DISK:
        return Check("disk", "warning", why, "use a local disk for runs: each checkpoint waits for the writing")
    return Check("disk", "ok", why)


def write_speed(folder: Path, size: int = WRITTEN) -> float:
    """Bytes per second of one file of random bytes, synced. The file is gone afterwards. OSError as it comes."""
    content = os.urandom(size)
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return size / (time.perf_counter() - start)
