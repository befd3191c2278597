"""Experiment 018: why a build holds more memory than its trial showed, and what the allocator's settings cost.

python experiments/018_resident.py build OUT.jsonl 90s [key=value ...]    a build, its memory at every stage's ends
python experiments/018_resident.py steps                                  a step's time and peak, by malloc's settings
"""

import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from groundup.accounting.hardware import Machine
from groundup.accounting.plan import TextFacts, Wishes, plan
from groundup.build import build, decide, stages
from groundup.build.pretrain import prepare
from groundup.build.settings import settings_from
from groundup.build.trial import _steps
from groundup.device import (
    keep_memory,
    peak_memory_bytes,
    release_memory,
    reset_peak_memory,
    resident_bytes,
    use_onednn_fp32,
)

MIB = 2**20
WATCHED = ("make_tokenizer", "make_baselines", "pretrain", "evaluate", "draw_samples", "report")
# "kept" is `device.keep_memory`; a number is a fixed M_MMAP_THRESHOLD in MiB.
SETTINGS = ("plain", "kept", "1", "8", "plain", "kept")
M_MMAP_THRESHOLD, STEPS, WARMUP = -3, 25, 3
FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class Mallinfo(ctypes.Structure):
    """What glibc's mallinfo2 says."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS.split()]


def memory() -> dict[str, float]:
    """MiB: of the process, of its files, and of malloc's heap what is used and what is free."""
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = Mallinfo
    heap = library.mallinfo2()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kib = {
        name: int(status[key].split()[0]) for name, key in (("peak", "VmHWM"), ("rss", "VmRSS"), ("files", "RssFile"))
    }
    return {
        **{name: size / 1024 for name, size in kib.items()},
        "used": heap.uordblks / MIB,
        "free": heap.fordblks / MIB,
    }


def watched(function: Callable[..., Any], name: str, file: Path) -> Callable[..., Any]:
    """With a line in the file before and after each call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        note(file, f"{name} begins")
        try:
            return function(*args, **kwargs)
        finally:
            note(file, f"{name} ends")

    return call


def note(file: Path, what: str) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps({"at": what, **{name: round(size, 1) for name, size in memory().items()}}) + "\n")


def watch_build(out: str, budget: str, *changes: str) -> None:
    """Build from the bundled text, and print predicted and measured."""
    file = Path(out)
    decide.try_out = watched(decide.try_out, "trial", file)
    for name in WATCHED:
        setattr(stages.Stages, name, watched(getattr(stages.Stages, name), name, file))
    result = build([], settings_from(budget, None, list(changes)), out=f"{out}.run")
    print(json.dumps({side: result[side]["peak_memory_bytes"] for side in ("predicted", "measured")}))


def steps_with(setting: str) -> None:
    """Steps of a planned model in this process, with malloc set so."""
    use_onednn_fp32()
    torch.set_num_threads(2)
    machine = Machine("cpu", "two cores", 2, "bf16", {"bf16 x2": 6e11}, 2e10, 8 * 10**9)
    wishes = Wishes(d_model=192, num_layers=4, vocab_size=2048)
    made = plan(TextFacts(3_000_000, 1, 10, 1.8), machine, 60.0, wishes)[0]
    session = prepare(made, machine, 0, False)
    release_memory()
    reset_peak_memory(session.device)
    idle = resident_bytes()
    if setting == "kept":
        assert keep_memory(), "this C library has no mallopt, or its environment is set"
    elif setting != "plain":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, int(setting) * MIB)
    steps = _steps(session, made)
    seconds = [next(steps) for _ in range(STEPS)][WARMUP:]
    median, peak = 1e3 * statistics.median(seconds), peak_memory_bytes(session.device)
    print(f"{setting:6} median {median:.1f} ms, idle {idle / MIB:.0f} MiB, peak {peak / MIB:.0f} MiB", flush=True)


def main(words: list[str]) -> None:
    if words[:1] == ["build"]:
        watch_build(*words[1:])
    elif words[:1] == ["one"]:
        steps_with(words[1])
    else:
        for setting in SETTINGS:  # each in a process of its own: malloc's settings stay
            subprocess.run([sys.executable, __file__, "one", setting], check=True)
            time.sleep(1)


if __name__ == "__main__":
    main(sys.argv[1:])
