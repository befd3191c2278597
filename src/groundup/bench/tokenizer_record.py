"""From races of tokenizers to rows and a record: how ours compares in speed, and whether the outputs are the same."""

import json
from collections.abc import Sequence
from typing import Any

from groundup.bench.measure import Rates
from groundup.bench.race import Entry
from groundup.bench.record import Record, print_table
from groundup.bench.tokenizer_checks import verdict
from groundup.bench.tokenizer_race import OURS, RIVAL, Cell, Outcome, Try
from groundup.config import plural
from groundup.device import describe, environment, require_device

# Of one cell's table.
COLUMNS = {
    "program": "program",
    "setting": "call",
    "cut": "text",
    "value": "median",
    "spread": "IQR",
    "unit": "",
    "ratio": "ours leads by",
    "peak_gb": "peak GB",
    "check": "output",
    "note": "",
}


def rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One row per way of doing a cell's work, with how ours compares in speed and in output."""
    ours = references(outcomes)
    return [
        _row(outcome, attempt, entry, verdict(outcome.cell.expected or ours.get(_input(entry)), found))
        for outcome in outcomes
        for attempt, entry, found in zip(outcome.cell.tries, outcome.entries, outcome.checks, strict=True)
    ]


def references(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """For each input the first check of ours: what all outputs are compared with."""
    found: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        for entry, check in zip(outcome.entries, outcome.checks, strict=True):
            if entry.setting.program == OURS and check is not None:
                found.setdefault(_input(entry), check)
    return found


def _input(entry: Entry) -> str:
    """What outputs depend on: programs with the same answer here must have the same output."""
    options = entry.setting.options
    return json.dumps([options["check_kind"], options["text"], options.get("input"), options["vocab_size"]])


def _row(outcome: Outcome, attempt: Try, entry: Entry, check: str) -> dict[str, Any]:
    cell = outcome.cell
    shown = values(cell, entry)
    return {
        "cell": cell.title,
        "threads": cell.threads,
        "program": attempt.program,
        "setting": attempt.name,
        "cut": entry.setting.options.get("cut", ""),
        "value": shown and shown.median,
        "spread": shown and shown.spread,
        "unit": cell.unit.name,
        "ratio": lead(cell, outcome.best(OURS), entry) if attempt.program != OURS else None,
        "peak_gb": entry.peak_bytes / 1e9 if entry.peak_bytes and shown else None,
        "check": check,
        "note": entry.failure or attempt.note,
    }


def values(cell: Cell, entry: Entry) -> Rates | None:
    """An entry's measurements in the cell's unit."""
    if entry.rates is None:
        return None
    amount = entry.setting.options.get("amount", cell.amount)
    return Rates(tuple(cell.unit.of(rate, amount) for rate in entry.rates.values))


def lead(cell: Cell, ours: Entry | None, other: Entry | None) -> float | None:
    """How many times ours is better than the other: above 1 ours is faster, whatever the unit."""
    mine, theirs = (entry and values(cell, entry) for entry in (ours, other))
    if mine is None or theirs is None:
        return None
    times = mine.median / theirs.median
    return times if cell.unit.seconds_scale is None else 1 / times


def compare(name: str, outcomes: Sequence[Outcome], headline: Cell, details: dict[str, Any]) -> Record:
    """The record. Its ratio is ours against gigatoken, each in its best way, in the cell `headline`."""
    outcome = next(outcome for outcome in outcomes if outcome.cell is headline)
    ours, peer = outcome.best(OURS), outcome.best(RIVAL)
    assert ours is not None
    mine, theirs = values(headline, ours), peer and values(headline, peer)
    assert mine is not None
    table = rows(outcomes)
    return Record(
        name=name,
        ours=mine.median,
        peer=theirs.median if theirs else None,
        peer_name=peer.setting.title if peer else None,
        ratio=lead(headline, ours, peer),
        unit=headline.unit.name,
        device=describe(require_device("cpu")),
        rows=table,
        details={
            "headline": f"{headline.title}, {plural(headline.threads, 'thread')}",
            "ours_name": ours.setting.title,
            "differing_outputs": [_title(row) for row in table if row["check"].startswith("DIFFERS")],
            "not_measured": {_title(row): row["note"] for row in table if row["value"] is None},
            "measured": measured(table, outcomes),
            **details,
        },
        versions={k: v for o in outcomes for e in o.entries for k, v in e.facts.get("versions", {}).items()},
        environment=environment(),
    )


def _title(row: dict[str, Any]) -> str:
    return f"{row['cell']}, {plural(row['threads'], 'thread')}: {row['program']} ({row['setting']})"


def measured(table: Sequence[dict[str, Any]], outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    """Every single measurement, by the title of its row, in the row's unit."""
    shown = [values(outcome.cell, entry) for outcome in outcomes for entry in outcome.entries]
    return {_title(row): list(rates.values) for row, rates in zip(table, shown, strict=True) if rates}


def print_tables(record: Record) -> None:
    """One table per cell: its way to do the work on each line."""
    by_cell: dict[str, list[dict[str, Any]]] = {}
    for row in record.rows:
        by_cell.setdefault(f"{row['cell']}, {plural(row['threads'], 'thread')}", []).append(row)
    for title, cell_rows in by_cell.items():
        print_table(title, cell_rows, COLUMNS)
