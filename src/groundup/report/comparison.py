"""Predicted against measured: how far a plan was from what came."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from groundup.accounting.run_ledger import QUANTITIES
from groundup.report.quantities import MISSING, label, number, quantity
from groundup.report.run import RunFiles, as_object
from groundup.report.tables import Column, Table

# How near a prediction should come, as the ledger has it: relative for costs, absolute (nats per token) for losses.
RELATIVE_AIMS = {name: kind.goal for name, kind in QUANTITIES.items() if kind.goal is not None and kind.relative}
ABSOLUTE_AIMS = {name: kind.goal for name, kind in QUANTITIES.items() if kind.goal is not None and not kind.relative}
ABSOLUTE_AIMS["loss"] = ABSOLUTE_AIMS["nats_per_token"]


@dataclass(frozen=True)
class Comparison:
    """One figure as promised and as it came; `error` is measured / predicted - 1, `aim` how near was asked."""

    name: str
    predicted: float | None
    measured: float | None
    error: float | None
    aim: str
    met: bool | None


def comparisons(run: RunFiles) -> list[Comparison]:
    """Every figure that was predicted, then every other one that was measured."""
    predicted, measured = run.predicted, run.measured
    names = [n for n in predicted if not n.endswith("_error")]
    names += [n for n in as_object(run.result.get("measured")) if n not in predicted]
    made = (_compare(n, predicted, measured) for n in names)
    return [c for c in made if c.predicted is not None or c.measured is not None]


def _compare(name: str, predicted: dict[str, Any], measured: dict[str, Any]) -> Comparison:
    p, m = number(predicted.get(name)), number(measured.get(name))
    stated = number(predicted.get(f"{name}_error"))
    aim, met = "", None
    if p is None or m is None:
        return Comparison(name, p, m, None, aim, met)
    if stated is not None:
        aim, met = f"±{stated:.3g}", abs(m - p) <= stated
    elif name in RELATIVE_AIMS:
        aim, met = f"±{100 * RELATIVE_AIMS[name]:.0f} %", abs(m - p) <= RELATIVE_AIMS[name] * abs(p)
    elif name in ABSOLUTE_AIMS:
        aim, met = f"±{ABSOLUTE_AIMS[name]}", abs(m - p) <= ABSOLUTE_AIMS[name]
    return Comparison(name, p, m, m / p - 1 if p else None, aim, met)


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Predicted against measured, with the error and whether it is as small as it should be."""
    columns = [Column("quantity"), *(Column(t, "right") for t in ("predicted", "measured", "error", "aim", ""))]
    rows = [
        (
            label(c.name),
            quantity(c.name, c.predicted),
            quantity(c.name, c.measured),
            MISSING if c.error is None else f"{100 * c.error:+.1f} %".replace("-", "−"),
            c.aim,
            {True: "met", False: "missed", None: ""}[c.met],
        )
        for c in comparisons
    ]
    return Table(columns, rows)
