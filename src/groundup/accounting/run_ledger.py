"""The ledger of runs: what was predicted before each, what was measured after it, and how far apart the two were.

    error = measured / predicted - 1    of times, rates, bytes and shares
    error = measured - predicted        of losses

One JSON file holds the entries of many runs, so that the planner's error is a figure that one can watch. A file is not
trusted: whatever is not an entry as it should be is refused, with its place and what was expected there.
"""

import datetime
import statistics
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from groundup.config import from_dict, nearest
from groundup.files import read_json, write_json

FORMAT = 1
MOST_FILE_BYTES = 16 * 2**20
MOST_CHARACTERS, MOST_MESSAGE = 200, 500


@dataclass(frozen=True)
class Measure:
    """A kind of quantity: its unit, how near a prediction should come (None: no such aim), and how errors are taken."""

    unit: str
    goal: float | None = None
    relative: bool = True


QUANTITIES = {
    "step_seconds": Measure("seconds", 0.10),
    "tokens_per_second": Measure("tokens/s"),
    "mfu": Measure("share of the measured peak"),
    "peak_memory_bytes": Measure("bytes", 0.05),
    "nats_per_token": Measure("nats/token", 0.02, relative=False),
    "bits_per_byte": Measure("bits/byte", relative=False),
    "total_seconds": Measure("seconds", 0.05),
}
"""What is held against its prediction. Bits per byte say the same as nats per token, which have the aim."""


@dataclass(frozen=True)
class Quantity:
    """One figure as predicted before the run and as measured; None where there is none.

    Raises ValueError for a name or unit that is not in `QUANTITIES`, or a value that is negative or not finite.
    """

    name: str
    unit: str
    predicted: float | None
    measured: float | None

    def __post_init__(self) -> None:
        if self.name not in QUANTITIES:
            raise ValueError(f"quantity {_shown(self.name)} is unknown{nearest(self.name, QUANTITIES)}")
        if self.unit != self.kind.unit:
            raise ValueError(f"{self.name}: unit {_shown(self.unit)}; expected {self.kind.unit!r}")
        most = 1.0 if self.name == "mfu" else sys.float_info.max
        for side in ("predicted", "measured"):
            value = getattr(self, side)
            if value is not None and not 0 <= value <= most:  # NaN is not, either
                raise ValueError(f"{self.name}: {side} {value}; expected a finite number from 0 to {most:g}")

    @classmethod
    def of(cls, name: str, predicted: float | None, measured: float | None) -> "Quantity":
        """With the unit that goes with the name."""
        pair = (None if value is None else float(value) for value in (predicted, measured))
        return cls(name, QUANTITIES[name].unit if name in QUANTITIES else "", *pair)

    @property
    def kind(self) -> Measure:
        return QUANTITIES[self.name]

    @property
    def error(self) -> float | None:
        """measured / predicted - 1, of a loss measured - predicted; None where either is missing.

        >>> Quantity.of("step_seconds", 0.8, 0.9).error, Quantity.of("nats_per_token", 3.5, 3.25).error
        (0.125, -0.25)
        """
        if self.predicted is None or self.measured is None:
            return None
        if not self.kind.relative:
            return self.measured - self.predicted
        return self.measured / self.predicted - 1 if self.predicted else None

    @property
    def met(self) -> bool | None:
        """Whether the error is within the goal; None where there is no error or no goal."""
        if self.predicted is None or self.measured is None or self.error is None or self.kind.goal is None:
            return None
        scale = self.predicted if self.kind.relative else 1.0
        return abs(self.measured - self.predicted) <= self.kind.goal * scale


@dataclass(frozen=True)
class Entry:
    """One finished run.

    run: identifies the run: the same wherever its folder lies, and another for every run
    verb: the command that made it; name: of its folder, or of a variant in it; date: ISO 8601
    parameters: of the model; tokens: that it was trained on
    """

    run: str
    verb: str
    name: str
    date: str
    device: str
    parameters: int
    tokens: int
    quantities: tuple[Quantity, ...]
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    precision: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("run", "verb", "name", "date", "device", "commit", "precision"):
            if (text := getattr(self, name)) is not None:
                _check_text(name, text)
        _check_versions(self.versions)
        for name in ("parameters", "tokens", "threads"):
            if (count := getattr(self, name)) is not None and not 0 <= count < 2**63:
                raise ValueError(f"{name}: expected a whole number from 0, below 2^63")
        _moment(self.date)
        names = [quantity.name for quantity in self.quantities]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"quantities: {', '.join(sorted(twice))} stands there twice")

    def quantity(self, name: str) -> Quantity | None:
        return next((quantity for quantity in self.quantities if quantity.name == name), None)


@dataclass(frozen=True)
class Accuracy:
    """The errors of one quantity over the runs that have both figures.

    median: of the errors without their sign; worst: the largest, with its sign; within: share that meets the goal
    """

    name: str
    runs: int
    median: float
    worst: float
    goal: float | None
    within: float | None


@dataclass
class Ledger:
    """Entries, the oldest first; no run has two."""

    entries: list[Entry] = field(default_factory=list)

    @classmethod
    def read(cls, path: str | Path) -> "Ledger":
        """ValueError for a file that is no ledger, with the place of what is wrong; OSError where there is none."""
        path = Path(path)
        if path.stat().st_size > MOST_FILE_BYTES:
            raise ValueError(f"{path}: larger than {MOST_FILE_BYTES // 2**20} MiB, so this is not a ledger of runs")
        return cls.from_json(_parsed(path), str(path))

    @classmethod
    def from_json(cls, data: Any, where: str = "ledger") -> "Ledger":
        """From the object that `as_json` gives. ValueError for anything else; `where` begins its message."""
        if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("entries"), list):
            raise ValueError(f'{where}: expected an object with "format": {FORMAT} and a list "entries"')
        entries = [_entry(stored, f"{where}: entries[{place}]") for place, stored in enumerate(data["entries"])]
        seen: set[str] = set()
        for place, entry in enumerate(entries):
            if entry.run in seen:
                raise ValueError(f"{where}: entries[{place}]: run {entry.run!r} stands there twice")
            seen.add(entry.run)
        return cls(sorted(entries, key=_place))

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "entries": [asdict(entry) for entry in self.entries]}

    def write(self, path: str | Path) -> None:
        """Replace the file as a whole: readers see the old ledger or the new."""
        write_json(path, self.as_json())

    def add(self, entry: Entry) -> bool:
        """Put a run into its place by date; whether it took the place of the run's older entry."""
        others = [other for other in self.entries if other.run != entry.run]
        replaced = len(others) < len(self.entries)
        self.entries = sorted([*others, entry], key=_place)
        return replaced

    def accuracies(self) -> list[Accuracy]:
        """How right the predictions were, for each quantity that any run has predicted and measured."""
        return [found for name in QUANTITIES if (found := accuracy(name, self.entries)) is not None]


def accuracy(name: str, entries: Iterable[Entry]) -> Accuracy | None:
    """The errors of the quantity of this name; None where no entry has one."""
    found = [q for entry in entries if (q := entry.quantity(name)) is not None and q.error is not None]
    if not found:
        return None
    errors = [quantity.error or 0.0 for quantity in found]
    goal = QUANTITIES[name].goal
    within = None if goal is None else statistics.fmean(bool(quantity.met) for quantity in found)
    return Accuracy(name, len(errors), statistics.median(map(abs, errors)), max(errors, key=abs), goal, within)


def add_to(path: str | Path, entries: Iterable[Entry]) -> Ledger:
    """The ledger in `path` (begun, where there is no such file) with these entries in it, written back."""
    ledger = Ledger.read(path) if Path(path).exists() else Ledger()
    for entry in entries:
        ledger.add(entry)
    ledger.write(path)
    return ledger


def _parsed(path: Path) -> Any:
    try:
        return read_json(path)
    except ValueError as error:  # that of a number with thousands of digits does not name the file
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: not valid JSON ({error})") from error


def _entry(stored: Any, where: str) -> Entry:
    if not isinstance(stored, dict):
        raise ValueError(f"{where}: expected an object, not {_shown(stored)}")
    try:
        _check_versions(stored.get("versions"))
        return from_dict(Entry, stored, where)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        said = str(error) if str(error).startswith(where) else f"{where}: {error}"
        raise ValueError(said if len(said) <= MOST_MESSAGE else f"{said[:MOST_MESSAGE]}...") from error


def _check_versions(versions: Any) -> None:
    for package, version in versions.items() if isinstance(versions, dict) else ():
        _check_text("versions", package)
        _check_text(f"versions.{package}", version)


def _check_text(name: str, text: Any) -> None:
    """ValueError for what is no short line: a ledger is printed on terminals."""
    if not isinstance(text, str) or not text or len(text) > MOST_CHARACTERS or not text.isprintable():
        raise ValueError(f"{name}: {_shown(text)}; expected a line of 1 to {MOST_CHARACTERS} printable characters")


def _place(entry: Entry) -> tuple[datetime.datetime, str]:
    return _moment(entry.date), entry.run


def _moment(date: str) -> datetime.datetime:
    """A date or a time, comparable with any other: without a zone it is taken as UTC."""
    try:
        moment = datetime.datetime.fromisoformat(date)
    except ValueError as error:
        raise ValueError(f"date: {_shown(date)}; expected ISO 8601, as 2026-01-31T12:00:00+00:00") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def _shown(value: Any) -> str:
    """What stands in a file, short and without characters that steer a terminal."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
