"""`groundup report --why`: what each efficiency decision saves on this machine, as a table."""

import sys
from dataclasses import asdict
from pathlib import Path

from groundup.cli_parts import print_json, print_table


def run(seconds: float | None, as_json: bool, html: str | None = None) -> int:
    """Measure, print and write the page that is named; returns the exit code."""
    import torch

    from groundup.bench.why import SECONDS, why
    from groundup.cli_why_page import why_table, write_why
    from groundup.config import plural
    from groundup.device import describe

    if seconds is not None and not 0 <= seconds < float("inf"):
        raise ValueError(f"--seconds {seconds:g}: expected 0 or more")
    if html is not None and not Path(html).parent.is_dir():
        raise ValueError(f"--html {html}: there is no folder {Path(html).parent}")
    found = why(SECONDS if seconds is None else seconds, say=lambda line: print(line, file=sys.stderr, flush=True))
    turns = max(row.runs for row in found.rows)
    machine = f"{describe(torch.device('cpu'))}, {plural(found.threads, 'thread')}; medians of {plural(turns, 'turn')}"
    table = why_table(found.rows)
    headings = [column.title for column in table.columns]
    print_table(f"What each decision saves: {machine}", headings, table.rows, words=(0, 1, 2, 6))
    for note in found.notes:
        print(note)
    if html is not None:
        print(f"wrote {write_why(html, found, machine)}")
    if as_json:
        print_json({**asdict(found), "rows": [{**asdict(row), "factor": row.factor} for row in found.rows]})
    return 0


def amount(value: float, unit: str, spread: float) -> str:
    """A number for people, with its spread in per cent where it was measured.

    >>> amount(0.0125, "s", 0.04), amount(2048, "", 0)
    ('12.5 ms +- 4%', '2,048')
    """
    if unit == "s":
        scale, name = (1e3, "ms") if value >= 1e-3 else (1e6, "us")
        return f"{value * scale:,.3g} {name} +- {spread:.0%}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
