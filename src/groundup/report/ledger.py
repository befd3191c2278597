"""From the folders of finished runs to entries of the ledger, and the ledger as tables."""

import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from groundup.accounting.run_ledger import QUANTITIES, Accuracy, Entry, Ledger, Quantity
from groundup.config import plural
from groundup.files import read_json
from groundup.report.ablation import is_ablation, read_result
from groundup.report.quantities import MISSING, label, number, short_count
from groundup.report.run import as_object, read_run
from groundup.report.tables import Column, Table
from groundup.scaling import is_history

RUN_DIGITS = 16
UNKNOWN = "unknown"
SHOWN_ERRORS = ("step_seconds", "peak_memory_bytes", "nats_per_token", "total_seconds")


def entries_of(folder: str | Path) -> list[Entry]:
    """One entry for a run of `groundup build`, one for each variant of `ablate` and each trained rung of `history`.

    ValueError for a folder that is none of these, is not finished, or kept no prediction beside a measurement.
    """
    folder = Path(folder)
    try:
        if is_history(folder):
            entries = _entries_of_variants(folder / "neural", "history", folder.resolve().name)
        elif is_ablation(folder):
            entries = _entries_of_variants(folder, "ablate", folder.resolve().name)
        else:
            entries = [_entry_of_build(folder)]
    except ValueError as error:
        raise ValueError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from error
    whole = [entry for entry in entries if any(quantity.error is not None for quantity in entry.quantities)]
    if not whole:
        raise ValueError(f"{folder}: nothing in it was both predicted and measured, so the ledger has no use for it")
    return whole


def recorded_build(file: str | Path) -> Entry:
    """The entry of a build whose result was kept as a file of benchmarks/results. ValueError where it is none."""
    stored = as_object(read_json(file))
    result = as_object(stored.get("result"))
    if not result:
        raise ValueError(f'{file}: expected the record of a build, with an object "result"')
    return _entry(
        result, as_object(result.get("predicted")), as_object(result.get("measured")), as_object(stored.get("machine")),
        as_object(stored.get("environment")), run=identity(result), verb="build",
        name=str(stored.get("name") or Path(file).stem), date=str(stored.get("date") or _written(Path(file))),
    )  # fmt: skip


def identity(result: dict[str, Any]) -> str:
    """The start of the SHA-256 of a run's result: times are in it, so no two runs share it, and no place is."""
    kept = {key: value for key, value in result.items() if key != "run"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:RUN_DIGITS]


def _entry_of_build(folder: Path) -> Entry:
    run = read_run(folder)
    if not run.result:
        raise ValueError(f"{folder}: no whole result.json; only a finished run goes into the ledger")
    return _entry(
        run.result, run.predicted, run.measured, as_object(run.plan.get("machine")), run.env,
        run=identity(run.result), verb="build", name=folder.resolve().name,
        date=str(run.result.get("date") or _written(folder / "result.json")),
    )  # fmt: skip


def _entries_of_variants(folder: Path, verb: str, name: str) -> list[Entry]:
    """Of these, the time of a step was measured before the runs, to plan their length."""
    result, config = read_result(folder), as_object(read_json(folder / "config.json"))
    run, date = identity(result), _written(folder / "result.json")
    machine = {"precision": as_object(result["settings"]).get("precision")}
    return [
        _entry(
            row, as_object(row.get("predicted")), as_object(row.get("measured")), machine,
            as_object(config.get("environment")), run=f"{run}:{row['name']}", verb=verb,
            name=f"{name}: {row['name']}", date=date,
        )
        for row in map(as_object, result["variants"])
        if row
    ]  # fmt: skip


def _entry(
    result: dict[str, Any],
    predicted: dict[str, Any],
    measured: dict[str, Any],
    machine: dict[str, Any],
    environment: dict[str, Any],
    **known: str,
) -> Entry:
    threads = number(machine.get("threads", environment.get("threads")))
    versions = as_object(environment.get("versions"))
    return Entry(
        **known,
        device=str(environment.get("device") or machine.get("name") or UNKNOWN),
        parameters=int(number(result.get("parameters")) or 0),
        tokens=int(number(result.get("tokens")) or 0),
        quantities=_quantities(predicted, measured),
        versions={name: version for name, version in versions.items() if isinstance(version, str)},
        commit=_text(environment.get("commit")),
        precision=_text(machine.get("precision")),
        threads=None if threads is None else int(threads),
    )


def _quantities(predicted: dict[str, Any], measured: dict[str, Any]) -> tuple[Quantity, ...]:
    """Of what the ledger knows; 0 is what a system says that does not measure, and is left out."""
    pairs = {name: (number(predicted.get(name)) or None, number(measured.get(name)) or None) for name in QUANTITIES}
    return tuple(Quantity.of(name, *pair) for name, pair in pairs.items() if pair != (None, None))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _written(file: Path) -> str:
    """When a file was written last, for runs that do not say when they ended."""
    return datetime.datetime.fromtimestamp(file.stat().st_mtime, datetime.UTC).isoformat(timespec="seconds")


def accuracy_table(ledger: Ledger) -> Table:
    """How right the planner was, by quantity."""
    titles = ("runs", "median error", "worst", "goal", "within the goal")
    rows = [
        (
            label(found.name),
            f"{found.runs:,}",
            _error(found, found.median).lstrip("+"),
            _error(found, found.worst),
            MISSING if found.goal is None else f"± {_error(found, found.goal).lstrip('+')}",
            MISSING if found.within is None else f"{100 * found.within:.0f} %",
        )
        for found in ledger.accuracies()
    ]
    caption = f"{plural(len(ledger.entries), 'run')}: errors of predictions; the median is of errors without their sign"
    return Table([Column("quantity"), *(Column(title, "right") for title in titles)], rows, caption)


def entry_table(entries: Sequence[Entry]) -> Table:
    """The runs, with the errors that have a goal."""
    right = ("parameters", "tokens", *(label(name) for name in SHOWN_ERRORS))
    columns = [*map(Column, ("date", "command", "run", "device")), *(Column(title, "right") for title in right)]
    rows = [
        (
            entry.date[:10],
            entry.verb,
            entry.name,
            entry.device,
            short_count(entry.parameters),
            short_count(entry.tokens),
            *(_error_of(entry, name) for name in SHOWN_ERRORS),
        )
        for entry in entries
    ]
    return Table(columns, rows, "Errors of single runs, the newest last")


def _error_of(entry: Entry, name: str) -> str:
    quantity = entry.quantity(name)
    return MISSING if quantity is None or quantity.error is None else _error(quantity, quantity.error)


def _error(of: Quantity | Accuracy, error: float) -> str:
    """+8.0 %, or of a loss +0.021 with its unit's first word."""
    kind = QUANTITIES[of.name]
    text = f"{100 * error:+.1f} %" if kind.relative else f"{error:+.3f} {kind.unit.partition('/')[0]}"
    return text.replace("-", "−")
