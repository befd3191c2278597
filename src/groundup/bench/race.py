"""Programs in their settings against each other: heats find each program's best setting, a final compares those."""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundup.bench.measure import Rates, interleave
from groundup.bench.record import checkout
from groundup.bench.worker import Worker, WorkerFailed
from groundup.environ import for_program


@dataclass(frozen=True)
class Program:
    """A script for `worker.py` and the package that it measures.

    `preload` names libraries that the package wants to be loaded first, below its environment, where they are there.
    """

    script: Path | None
    package: str
    preload: tuple[str, ...] = ()

    def start(self, options: dict[str, Any], timeout: float = 600.0) -> Worker:
        """In an environment of its own, with as many threads as `options` has. To be called if it is not absent."""
        assert self.python and self.script
        environment = for_program(options.get("threads"))
        found = [str(path) for name in self.preload if (path := Path(self.python).parents[1] / name).exists()]
        if found:
            environment["LD_PRELOAD"] = ":".join(found)
        return Worker(self.python, self.script, options, environment, timeout=timeout)

    @property
    def python(self) -> str | None:
        """This interpreter, or that of .peers in a checkout, whichever has the package; None when neither has."""
        if importlib.util.find_spec(self.package) is not None:
            return sys.executable
        root = checkout()
        candidate = root / ".peers" / "bin" / "python" if root else None
        if candidate is None or not candidate.exists():
            return None
        probe = f"import importlib.util as u, sys; sys.exit(u.find_spec({self.package!r}) is None)"
        return str(candidate) if subprocess.run([candidate, "-c", probe], check=False).returncode == 0 else None

    @property
    def absence(self) -> str | None:
        """Why this program cannot be measured here, or None."""
        if self.script is None:
            return "its script is in benchmarks/peers of a checkout, and this is an installed package"
        return None if self.python else f"{self.package} is not installed; `make peers` installs it"


@dataclass(frozen=True)
class Setting:
    """One way to run one program."""

    program: str
    name: str
    options: dict[str, Any]

    @property
    def title(self) -> str:
        return f"{self.program} ({self.name})"


@dataclass
class Entry:
    """A setting in a race, and what came of it: rates, or the reason why there are none.

    `turn_seconds` is what the last turn took, with work around it that a rate does not count.
    """

    setting: Setting
    rates: Rates | None = None
    peak_bytes: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None
    worker: Worker | None = None
    turn_units: int = 1
    turn_seconds: float = 0.0

    def turn(self) -> float:
        """Units of work per second over one turn; 0 from the moment when the program has failed."""
        if self.worker is None or self.failure:
            return 0.0
        try:
            said = self.worker.run(self.turn_units)
        except WorkerFailed as error:
            self.failure = str(error)
            return 0.0
        self.peak_bytes = said["peak_bytes"]
        self.turn_seconds = said.get("elapsed", said["seconds"])
        return self.turn_units / said["seconds"]


class Contest:
    """Races between settings of `programs`, all with the same `options`.

    A turn has as many units of work as take about `turn_seconds`, found by doing one.
    """

    def __init__(self, programs: dict[str, Program], options: dict[str, Any], turn_seconds: float = 3.0):
        self.programs, self.options, self.turn_seconds = programs, options, turn_seconds

    def race(self, settings: Sequence[Setting], seconds: float = 0.0) -> list[Entry]:
        """All of them at once, in turns, for `seconds` and at least three turns each."""
        with ExitStack() as stack:
            entries = [self._enter(setting, stack) for setting in settings]
            for entry in entries:
                if entry.turn() > 0:
                    entry.turn_units = max(1, round(self.turn_seconds / entry.turn_seconds))
            running = {entry.setting.title: entry for entry in entries if not entry.failure}
            if running:
                measured = interleave({name: e.turn for name, e in running.items()}, seconds=seconds)
                for name, entry in running.items():
                    entry.rates = None if entry.failure else measured[name]
        return entries

    def _enter(self, setting: Setting, stack: ExitStack) -> Entry:
        program = self.programs[setting.program]
        if reason := program.absence:
            return Entry(setting, failure=reason)
        try:
            worker = stack.enter_context(program.start(self.options | setting.options))
        except WorkerFailed as error:
            return Entry(setting, failure=str(error))
        return Entry(setting, worker=worker, facts=worker.facts)


def fastest(entries: Sequence[Entry]) -> Entry | None:
    """The entry with the highest median, None when none ran."""
    ran = [entry for entry in entries if entry.rates is not None]
    return max(ran, key=lambda entry: entry.rates.median if entry.rates else 0.0, default=None)
