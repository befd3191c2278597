"""The page and the table of a sweep of learning rates, from its folder's result.json alone."""

import io
import math
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from groundup.files import read_json, write_atomic
from groundup.report.charts import _STYLE, HELD_OUT, INK, MODEL, _themed
from groundup.report.quantities import MISSING
from groundup.report.tables import Column, Table, to_html, to_text
from groundup.report.templates import fill

Result = dict[str, Any]
CURVE_STEPS = 40


def write_sweep_report(folder: str | Path) -> Path:
    """Write report.html into a folder that `groundup sweep lr` has finished; returns its path. The same result gives
    the same bytes. ValueError for a folder without a whole result.json."""
    folder = Path(folder)
    result = read_sweep(folder)
    name = folder.resolve().name
    html = fill("sweep.html.j2", name=name, lede=" ".join(verdicts(result)), chart=rate_svg(result),
                table=to_html(rate_table(result)), notes=result["notes"])  # fmt: skip
    write_atomic(folder / "report.html", html.encode("utf-8", "replace"))
    return folder / "report.html"


def sweep_text(folder: str | Path) -> str:
    """The same for a terminal."""
    result = read_sweep(Path(folder))
    notes = "\n".join(f"- {note}" for note in result["notes"])
    return "\n\n".join([to_text(rate_table(result)), "\n".join(verdicts(result)), notes])


def read_sweep(folder: Path) -> Result:
    """result.json. ValueError where there is none, or it lacks what the page shows."""
    if not (folder / "result.json").is_file():
        raise ValueError(f"{folder}: no result.json; finish the sweep with groundup sweep lr --resume {folder}")
    result = read_json(folder / "result.json")
    missing = {"cells", "notes", "settings"} - (result.keys() if isinstance(result, dict) else set())
    if missing:
        raise ValueError(f"{folder / 'result.json'}: damaged, it has no {', '.join(sorted(missing))}")
    return result


def verdicts(result: Result) -> list[str]:
    """Best rate and edge of each cell, a sentence for each."""
    return [_verdict(cell, len(result["cells"]) > 1) for cell in result["cells"]]


def _verdict(cell: Result, named: bool) -> str:
    best, tried, edge = cell["best"], cell["best_tried"], cell["edge"]
    if best is not None:
        sure = "" if best["low"] is None else f" (95 %: {best['low']:.3g} to {best['high']:.3g})"
        said = f"best rate {best['rate']:.3g}{sure}, {best['bits_per_byte']:.4f} bits per byte by the parabola"
    elif tried is not None:
        said = f"best rate tried {tried['rate']:g}, {tried['bits_per_byte']:.4f} bits per byte"
    else:
        said = "every rate diverged"
    if edge["factor"] is not None:
        said += f"; the edge of stability is between {edge['stable']:g} and {edge['diverged']:g}"
    prefix = f"{cell_name(cell)}: " if named else ""
    return f"{prefix}{said}."[0].upper() + f"{prefix}{said}."[1:]


def cell_name(cell: Result) -> str:
    """What tells cells apart."""
    return f"batch {cell['batch_size']}, weight decay {cell['weight_decay']:g}"


def rate_table(result: Result) -> Table:
    """A row for each rate of each cell."""
    titles = ("batch", "weight decay", "rate", "steps", "bits per byte", "deviation", "diverged", "seconds")
    columns = [*(Column(title, "right") for title in titles), Column("")]
    rows, emphasis = [], set()
    for cell in result["cells"]:
        for row in cell["rates"]:
            if cell["best_tried"] and row["rate"] == cell["best_tried"]["rate"]:
                emphasis.add(len(rows))
            rows.append([
                str(cell["batch_size"]), f"{cell['weight_decay']:g}", f"{row['rate']:g}", f"{max(row['steps']):,}",
                MISSING if row["mean"] is None else f"{row['mean']:.4f}",
                MISSING if row["deviation"] is None else f"{row['deviation']:.4f}",
                f"{row['diverged']} of {len(row['steps'])}", f"{row['seconds']:.1f}", _remark(row, cell),
            ])  # fmt: skip
    return Table(columns, rows, "Each rate: means over the seeds that did not diverge", frozenset(emphasis))


def _remark(row: Result, cell: Result) -> str:
    remarks = {
        "best tried": cell["best_tried"] and cell["best_tried"]["rate"],
        "last stable": cell["edge"]["stable"],
        "first diverged": cell["edge"]["diverged"],
    }
    return ", ".join(remark for remark, rate in remarks.items() if rate == row["rate"])


def rate_svg(result: Result) -> Markup | None:
    """A panel for each cell; None where nothing was scored."""
    drawn = [cell for cell in result["cells"] if any(row["mean"] is not None for row in cell["rates"])]
    if not drawn:
        return None
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "sweep"}):
        figure = Figure(figsize=(960 / 72, 300 * len(drawn) / 72), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        for ax, cell in zip(figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0], drawn, strict=True):
            _draw(ax, cell, len(drawn) > 1)
        figure.axes[-1].set_xlabel("learning rate", fontsize=12)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _themed(out.getvalue(), "Bits per byte by learning rate", "sweep")


def _draw(ax: Axes, cell: Result, named: bool) -> None:
    points = [(row["rate"], bits) for row in cell["rates"] for bits in row["bits_per_byte"] if bits is not None]
    top = max(bits for _, bits in points)
    ax.set_xscale("log")
    ax.plot(*zip(*points, strict=True), "o", color=INK, markersize=4, alpha=0.6)
    lost = [row["rate"] for row in cell["rates"] if row["diverged"]]
    ax.plot(lost, [top] * len(lost), "x", color=HELD_OUT, markersize=7)
    if (best := cell["best"]) is not None:
        ends = [math.log(rate) for rate in (min(best["fitted"]), max(best["fitted"]))]
        xs = [ends[0] + (ends[1] - ends[0]) * i / CURVE_STEPS for i in range(CURVE_STEPS + 1)]
        ys = [best["bits_per_byte"] + best["curvature"] * (x - math.log(best["rate"])) ** 2 for x in xs]
        ax.plot([math.exp(x) for x in xs], ys, color=MODEL, linewidth=1.5)
        if best["low"] is not None:
            span = [max(best["low"], min(best["fitted"])), min(best["high"], max(best["fitted"]))]
            ax.plot(span, [best["bits_per_byte"]] * 2, color=MODEL, linewidth=4)
    if cell["edge"]["factor"] is not None:
        ax.axvline(math.sqrt(cell["edge"]["stable"] * cell["edge"]["diverged"]), color=INK, linestyle=":", linewidth=1)
    ax.set_title(cell_name(cell) if named else "", loc="left", fontsize=12)
    ax.grid(axis="y")
    ax.set_axisbelow(True)
