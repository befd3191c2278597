"""What the tokenizer benchmarks race: programs in cells, one after the other.

A cell is one comparison: the same work, text, threads and state (warm, cold, new tokenizer, fresh process) for every
program in it.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundup.bench.measure import interleave
from groundup.bench.race import Contest, Entry, Program, Setting, fastest
from groundup.bench.record import checkout
from groundup.bench.tokenizer_turns import SEPARATOR
from groundup.config import plural

OURS, RIVAL = "groundup", "gigatoken"
TURNS = Path(__file__).with_name("tokenizer_turns.py")
SLOW_ROUNDS = 2


@dataclass(frozen=True)
class Unit:
    """How a rate (calls per second) is shown: as `amount` per call and second, or as the time of one part."""

    name: str
    seconds_scale: float | None = None  # of a time: 1 shows seconds, 1e6 microseconds; None for a speed

    def of(self, rate: float, amount: float) -> float:
        return rate * amount if self.seconds_scale is None else self.seconds_scale / (rate * amount)


SPEED, SECONDS, MICROSECONDS = Unit("MB/s"), Unit("s", 1.0), Unit("us", 1e6)


@dataclass(frozen=True)
class Try:
    """One program's way to do a cell's work. `work` is a name in the `WORKS` of its side."""

    program: str
    work: str
    name: str
    note: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One comparison. `amount`: what a call does, in the unit (megabytes; calls; 1). `options` go to `Task`."""

    title: str
    threads: int
    unit: Unit
    amount: float
    tries: Sequence[Try]
    options: dict[str, Any]
    state: str = "warm"
    check_kind: str = "ids"
    slow: bool = False
    expected: dict[str, Any] | None = None  # the right check, where it is known without asking a program

    def settings(self, sides: Mapping[str, str], checks: Path) -> list[Setting]:
        """What `Contest` races; each program writes its check into a file of its own in the folder `checks`."""
        settings = []
        for number, attempt in enumerate(self.tries):
            options = self.options | {
                "work": attempt.work,
                "side": sides.get(attempt.program),
                "threads": self.threads,
                "state": self.state,
                "check_kind": self.check_kind,
                "separator": SEPARATOR,
                "short": self.unit is MICROSECONDS,
                "check": str(checks / f"{number}.json"),
            }
            settings.append(Setting(attempt.program, attempt.name, options | attempt.options))
        return settings


@dataclass(frozen=True)
class Outcome:
    """A cell after its race: the entries, and their checks (None where a program did not come to one)."""

    cell: Cell
    entries: list[Entry]
    checks: list[dict[str, Any] | None]

    def best(self, program: str) -> Entry | None:
        return fastest([entry for entry in self.entries if entry.setting.program == program])


class SlowContest(Contest):
    """For programs that take many seconds: a few rounds of one unit each, no turn to find out how long one takes."""

    def race(self, settings: Sequence[Setting], seconds: float = 0.0) -> list[Entry]:
        with ExitStack() as stack:
            entries = [self._enter(setting, stack) for setting in settings]
            running = {entry.setting.title: entry for entry in entries if not entry.failure}
            if running:
                measured = interleave({n: e.turn for n, e in running.items()}, seconds=0.0, min_rounds=SLOW_ROUNDS)
                for name, entry in running.items():
                    entry.rates = None if entry.failure else measured[name]
        return entries


def side_scripts() -> dict[str, tuple[Path | None, str]]:
    """Program -> its side and the package that has to be installed for it."""
    root = checkout()
    peers = root / "benchmarks" / "peers" if root else None
    packages = {
        RIVAL: "gigatoken",
        "tiktoken": "tiktoken",
        "Hugging Face": "tokenizers",
        "rustbpe": "rustbpe",
        "bpeasy": "bpeasy",
        "sentencepiece": "sentencepiece",
    }
    names = {program: program.lower().replace(" ", "") for program in packages}
    sides = {p: (peers and peers / f"tokenizer_{names[p]}.py", package) for p, package in packages.items()}
    return {OURS: (Path(__file__).with_name("tokenizer_ours.py"), "groundup")} | sides


class Races:
    """Runs cells one after the other. `seconds` of measuring are shared out among those that are not slow."""

    def __init__(self, folder: Path, seconds: float, turn_seconds: float):
        sides = side_scripts()
        self.programs = {name: Program(side and TURNS, package) for name, (side, package) in sides.items()}
        self.sides = {name: str(side) for name, (side, _) in sides.items()}
        self.folder, self.seconds, self.turn_seconds = folder, seconds, turn_seconds

    def run(self, cells: Sequence[Cell]) -> list[Outcome]:
        share = self.seconds / max(1, sum(not cell.slow for cell in cells))
        return [self._run(number, cell, share) for number, cell in enumerate(cells)]

    def _run(self, number: int, cell: Cell, seconds: float) -> Outcome:
        print(f"  {cell.title}, {plural(cell.threads, 'thread')}", flush=True)
        checks = self.folder / f"checks-{number}"
        checks.mkdir()
        kind = SlowContest if cell.slow else Contest
        entries = kind(self.programs, {}, self.turn_seconds).race(cell.settings(self.sides, checks), seconds)
        return Outcome(cell, entries, [_read_check(entry) for entry in entries])


def _read_check(entry: Entry) -> dict[str, Any] | None:
    path = Path(entry.setting.options["check"])
    return json.loads(path.read_text("utf-8")) if path.exists() else None
