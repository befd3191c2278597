"""What a run uses of its machine: a light thread looks every few seconds and leaves resources.jsonl.

Levels are those of the moment, rates and shares those since the look before. What a system does not say is left out,
and nothing that goes wrong here reaches the run.
"""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from groundup.device import available_bytes, resident_bytes

logger = logging.getLogger("groundup.train")

SECONDS = 5.0
# Where Linux counts; other systems have no such files.
MACHINE_TIMES, PROCESS_BYTES = Path("/proc/stat"), Path("/proc/self/io")
IDLE = (3, 4)  # of the columns of MACHINE_TIMES: idle, and waiting for a disk


@dataclass(frozen=True)
class Counters:
    """Everything that only grows; None where the system does not count it.

    cpu_seconds: of all threads of this process; machine: (busy, all) ticks of all cores; written_bytes: that this
    process has sent to disks; waited: seconds in which training waited for data.
    """

    moment: float
    cpu_seconds: float
    machine: tuple[int, int] | None
    written_bytes: int | None
    waited: float


def rates(before: Counters, after: Counters) -> dict[str, float]:
    """What happened between two looks.

    >>> quiet = Counters(0.0, 10.0, (100, 1000), 0, 0.0)
    >>> rates(quiet, Counters(2.0, 13.0, (250, 1200), None, 0.5))
    {'process_cores': 1.5, 'data_wait_share': 0.25, 'machine_cpu_share': 0.75}
    """
    elapsed = max(after.moment - before.moment, 1e-9)
    found = {
        "process_cores": (after.cpu_seconds - before.cpu_seconds) / elapsed,
        "data_wait_share": min(1.0, (after.waited - before.waited) / elapsed),
    }
    if before.machine and after.machine and (ticks := after.machine[1] - before.machine[1]) > 0:
        busy = after.machine[0] - before.machine[0]
        found["machine_cpu_share"] = min(1.0, max(0.0, busy / ticks))
    return found


def machine_ticks(text: str) -> tuple[int, int]:
    """(busy, all) ticks of the cores since the machine was started, from the first line of /proc/stat.

    >>> machine_ticks("cpu  50 0 25 800 100 0 5 20 0 0\\ncpu0 ...")
    (100, 1000)
    """
    ticks = [int(word) for word in text.split("\n", 1)[0].split()[1:9]]  # what follows is counted in these already
    return sum(ticks) - sum(ticks[i] for i in IDLE), sum(ticks)


def written(text: str) -> int:
    """Bytes that a process has sent to disks, from /proc/self/io.

    >>> written("wchar: 9\\nwrite_bytes: 4096\\ncancelled_write_bytes: 0")
    4096
    """
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("write_bytes:"))


def count(waited: float) -> Counters:
    """The counters now."""
    machine = _known(lambda: machine_ticks(MACHINE_TIMES.read_text()))
    disk = _known(lambda: written(PROCESS_BYTES.read_text()))
    return Counters(time.monotonic(), time.process_time(), machine, disk, waited)


def levels(device: torch.device) -> dict[str, float]:
    """Memory of the process and of the machine; of a GPU its memory, and where NVML (package nvidia-ml-py) is there,
    load, power and temperature."""
    readers: dict[str, Callable[[], float | None]] = {
        "resident_bytes": lambda: resident_bytes() or None,
        "free_memory_bytes": lambda: available_bytes(torch.device("cpu")) or None,
    }
    if device.type == "cuda":
        readers |= {
            "gpu_memory_bytes": lambda: _gpu_memory(device),
            "gpu_share": lambda: torch.cuda.utilization(device) / 100,
            "gpu_watts": lambda: torch.cuda.power_draw(device) / 1000,
            "gpu_celsius": lambda: torch.cuda.temperature(device),
        }
    found = {name: _known(reader) for name, reader in readers.items()}
    return {name: value for name, value in found.items() if value is not None}


def _gpu_memory(device: torch.device) -> int:
    """Bytes in use, by whatever program."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _known(reader: Callable[[], Any]) -> Any:
    """What `reader` says; None where it fails: a driver's library may raise anything."""
    try:
        return reader()
    except Exception:
        return None


class Monitor:
    """Looks every `seconds` from `__enter__` to `__exit__`, and once more at the end; appends to `file`.

    where: (step, seconds that training waited for data) as they are now. `latest` is the last record. `session` in a
    record is the time at which its Monitor began: counters begin at 0 with it.
    """

    def __init__(
        self, file: Path, device: torch.device, where: Callable[[], tuple[int, float]], seconds: float = SECONDS
    ) -> None:
        self.file, self.device, self.where, self.seconds = file, device, where, seconds
        self.latest: dict[str, float] = {}
        self._session = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="resources", daemon=True)

    def __enter__(self) -> "Monitor":
        try:
            self._thread.start()
        except RuntimeError as error:  # no further thread is allowed
            logger.warning("resources are not watched (%s); training goes on", error)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=SECONDS)

    def _watch(self) -> None:
        try:
            first = before = count(self.where()[1])
            self._session = round(time.time(), 3)
            ended = False
            while not ended:
                ended = self._stop.wait(self.seconds)
                before = self._look(first, before)
        except Exception as error:
            logger.warning("resources are no longer watched (%s: %s); training goes on", type(error).__name__, error)

    def _look(self, first: Counters, before: Counters) -> Counters:
        step, waited = self.where()
        after = count(waited)
        found = {**rates(before, after), **levels(self.device)}
        if first.written_bytes is not None and after.written_bytes is not None:
            found["written_bytes"] = after.written_bytes - first.written_bytes
        self.latest = {name: round(value, 4) for name, value in found.items()}
        record = {"time": round(time.time(), 3), "session": self._session, "step": step, **self.latest}
        with contextlib.suppress(OSError), open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        return after
