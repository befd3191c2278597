"""What each efficiency decision saves on this machine, as a page: `groundup report --why --html FILE`."""

import math
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes

from groundup.bench.why import Saving, Why
from groundup.cli_why import amount
from groundup.report.charts import HELD_OUT, INK, MODEL, drawn
from groundup.report.figure import FigurePage, write_figure_page
from groundup.report.tables import Column, Table

COLORS = {"measured": MODEL, "counted": INK, "recorded": HELD_OUT}
BAR = 34
"""Pixels that a row of the chart is high."""


def why_table(rows: Sequence[Saving]) -> Table:
    """Each quantity without and with its decision."""
    columns = [Column("decision"), Column("without / with"), Column("what"), Column("without", "right"),
               Column("with", "right"), Column("less", "right"), Column("how")]  # fmt: skip
    cells = [
        [row.decision, row.compared, row.quantity, amount(row.before, row.unit, row.spread_before),
         amount(row.after, row.unit, row.spread_after), f"{row.factor:,.2f} x", row.how]
        for row in rows
    ]  # fmt: skip
    return Table(columns, cells, "What each decision saves")


def why_svg(rows: Sequence[Saving], width: int = 960) -> Markup:
    """A bar for each row: to the right of 1 it is so many times less, to the left more. Steps are factors."""

    def draw(ax: Axes) -> None:
        for place, row in enumerate(rows):
            ax.barh(place, row.factor - 1, 0.7, left=1.0, color=COLORS[row.how])
            beyond = (row.factor, 4, "left") if row.factor >= 1 else (1.0, 4, "left")
            ax.annotate(f"{row.factor:,.2f}", (beyond[0], place), (beyond[1], 0), textcoords="offset points",
                        ha="left", va="center", fontsize=12)  # fmt: skip
        ax.set_yticks(range(len(rows)), [f"{row.decision}: {row.quantity}" for row in rows])
        ax.set_xscale("log")
        factors = [row.factor for row in rows]
        ax.set_xlim(min(0.8, 0.9 * min(factors)), 1.6 * max(1.25, *factors))
        ax.set_xlabel("times less (logarithmic)", fontsize=12)
        ax.axvline(1.0, color=INK, linewidth=1.0)
        ax.invert_yaxis()
        ax.tick_params(labelsize=12, which="both", length=0)

    return drawn(draw, "What each decision saves", width, 90 + BAR * len(rows))


def write_why(path: str | Path, found: Why, machine: str) -> Path:
    """The page; returns its path. OSError when the file cannot be written."""
    shown = [row for row in found.rows if 0 < row.factor < math.inf]
    most = max((row for row in shown if row.how == "measured"), key=lambda row: row.factor, default=shown[0])
    lede = f"Of what was measured, {most.decision} saves most: {most.quantity} is {most.factor:,.2f} times less."
    caption = "Measured here, counted, or taken from a record: the table says which."
    page = FigurePage("Why", machine, lede, [(why_svg(shown), caption)], [why_table(found.rows)], found.notes)
    return write_figure_page(path, page)
