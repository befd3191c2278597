"""What a benchmark leaves behind: a table for people, a JSON line for programs, a file for the repository."""

import datetime
import json
import os
import shlex
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from groundup.files import write_json


@dataclass
class Record:
    """One benchmark's outcome. `ratio` is ours against the best peer's best setting; above 1 we lead."""

    name: str
    ours: float
    peer: float | None
    peer_name: str | None
    ratio: float | None
    unit: str
    device: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    load_average: dict[str, list[float]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        self.command = self.command or shlex.join(["groundup", *sys.argv[1:]])
        self.date = self.date or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

    def line(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)


def load_average() -> list[float]:
    """How busy the machine was over 1, 5 and 15 minutes; empty where the system does not say (Windows)."""
    try:
        return list(os.getloadavg())
    except (AttributeError, OSError):
        return []


def checkout() -> Path | None:
    """The repository that this code is in, or None where it is installed without one."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "benchmarks" / "results").is_dir() else None


def save(record: Record, stem: str) -> Path:
    """Write benchmarks/results/STEM.json of the checkout."""
    root = checkout()
    if root is None:
        raise ValueError("--save writes to benchmarks/results of a checkout, and this is an installed package")
    path = root / "benchmarks" / "results" / f"{stem}.json"
    write_json(path, asdict(record))
    return path


def print_table(title: str, rows: list[dict[str, Any]], columns: dict[str, str]) -> None:
    """`columns` maps a row's key to its heading; text goes left, numbers right."""
    table = Table(title=title, title_justify="left")
    for key, heading in columns.items():
        numeric = any(isinstance(row.get(key), int | float) for row in rows)
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric)
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in columns))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
