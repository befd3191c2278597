"""The program that every tokenizer is measured through: one clock, one memory meter and one check for all of them.

`worker.py` runs this file; it loads a *side*, the script of one tokenizer, which needs nothing of groundup's. A side
has `VERSIONS` and `WORKS`: name -> function(task) -> (call, results). `call()` does the work once, and that alone is
timed; `results(output)` iterates over what is compared with the other sides: sequences of ids, or bytes.

Only the standard library is imported here, so that a fresh process costs what its tokenizer costs.
"""

import contextlib
import gc
import importlib.util
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

SEPARATOR = "<|endoftext|>"
STRING_CHARACTERS = 200

Job = tuple[Callable[[], Any], Callable[[Any], Iterable[Any]]]


class Task:
    """What a side works on: a text file, a folder with a vocabulary, and how many threads may work."""

    separator = SEPARATOR

    def __init__(self, options: dict[str, Any]):
        self.options = options
        self.threads: int = options["threads"]
        self.path = Path(options["text"])

    @property
    def vocabulary(self) -> Path:
        """A folder with tokenizer.json (Hugging Face's form) and ranks.tiktoken (tiktoken's)."""
        return Path(self.options["vocabulary"])

    @property
    def end_of_text(self) -> int:
        return self.options["end_of_text"]

    @property
    def vocab_size(self) -> int:
        """For training: the 256 bytes, the merges and the separator together."""
        return self.options["vocab_size"]

    @property
    def ids_path(self) -> Path:
        """For decoding: a .npy file, uint32 [n]."""
        return Path(self.options["ids"])

    @cached_property
    def texts(self) -> list[str]:
        """The documents, without what separates them."""
        return self.path.read_bytes().decode().split(SEPARATOR)

    @cached_property
    def strings(self) -> list[str]:
        """Strings of 200 characters, from all over the text."""
        joined, count = "".join(self.texts), self.options["num_strings"]
        step = max(1, (len(joined) - STRING_CHARACTERS) // count)
        return [joined[at : at + STRING_CHARACTERS] for at in range(0, step * count, step)]


class Turns:
    """Does the work as often as it is told, and checks what came out of the first time."""

    def __init__(self, side: Any, options: dict[str, Any]):
        self.side, self.options, self.task = side, options, Task(options)
        if first := options.get("warm_up"):  # other options for a short first call, which loads code and wakes threads
            side.WORKS[options["work"]](Task(options | first))[0]()
        self.job = None if options["state"] == "new" else self._new_job()
        self.unchecked: list[Iterable[Any]] | None = []

    def run(self, units: int) -> dict[str, Any]:
        gc.collect()
        reset_peak()
        seconds = self._loop(units) if self.options["short"] else sum(self._call() for _ in range(units))
        peak = peak_bytes()
        for results in self.unchecked or []:  # now: checking takes memory of its own
            write_check(self.options, results)
        self.unchecked = None
        return {"seconds": seconds, "peak_bytes": peak}

    def _new_job(self) -> Job:
        return self.side.WORKS[self.options["work"]](self.task)

    def _call(self) -> float:
        call, results = self.job or self._new_job()
        started = time.perf_counter()
        output = call()
        seconds = time.perf_counter() - started
        self._keep(results, output)
        return seconds  # to give the output's memory back is not part of the work

    def _loop(self, units: int) -> float:
        """Calls that take microseconds: the clock is read around all of them."""
        call, results = self.job or self._new_job()
        self._keep(results, call())
        started = time.perf_counter()
        for _ in itertools.repeat(None, units):
            call()
        return time.perf_counter() - started

    def _keep(self, results: Callable[[Any], Iterable[Any]], output: Any) -> None:
        if self.unchecked is not None and not self.unchecked:
            self.unchecked.append(results(output))


class FreshProcesses:
    """Every unit is a new process: interpreter, imports, vocabulary, the work.

    The time is all of it ("fresh"), or that of the work alone, the first that this process does ("cold").
    """

    def __init__(self, options: dict[str, Any]):
        self.options, self.whole = options, options["state"] == "fresh"

    def run(self, units: int) -> dict[str, Any]:
        measured = [self._process() for _ in range(units)]
        seconds, elapsed, peaks = zip(*measured, strict=True)
        return {"seconds": sum(seconds), "elapsed": sum(elapsed), "peak_bytes": max(peaks)}

    def _process(self) -> tuple[float, float, int]:
        command = [sys.executable, "-P", __file__, json.dumps(self.options)]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if done.returncode:
            words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise RuntimeError(f"a fresh process ended with code {done.returncode}: {words[-1] if words else ''}")
        self.options = self.options | {"check": None}  # the first one alone, whose time does not count
        said = json.loads(done.stdout.splitlines()[-1])
        return seconds if self.whole else said["seconds"], seconds, said["peak_bytes"]


def prepare(options: dict[str, Any]) -> tuple[dict[str, Any], Callable[[int], dict[str, Any]]]:
    """What worker.py asks for. options["state"]: "warm" (the same object again and again), "new" (a new object for
    each call), "cold" (the first call of a new process) or "fresh" (a new process, all of it)."""
    side = load(options["side"])
    turns = FreshProcesses(options) if options["state"] in ("cold", "fresh") else Turns(side, options)
    return {"versions": side.VERSIONS}, turns.run


def once(options: dict[str, Any]) -> None:
    """What a fresh process does."""
    call, results = load(options["side"]).WORKS[options["work"]](Task(options))
    started = time.perf_counter()
    output = call()
    said = {"seconds": time.perf_counter() - started, "peak_bytes": peak_bytes()}
    write_check(options, results(output))
    print(f"\n{json.dumps(said)}", flush=True)  # last, after whatever a library printed


def write_check(options: dict[str, Any], results: Iterable[Any]) -> None:
    if options["check"]:
        load(Path(__file__).with_name("tokenizer_checks.py")).write(options, results)


def load(script: str | Path) -> Any:
    spec = importlib.util.spec_from_file_location(Path(script).stem, script)
    assert spec is not None and spec.loader is not None, script
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reset_peak() -> None:
    """Begin a new peak, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The highest resident size of this process since `reset_peak`, or since its start where that does nothing."""
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


if __name__ == "__main__":
    once(json.loads(sys.argv[1]))
