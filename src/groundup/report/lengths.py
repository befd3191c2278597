"""The part of a comparison's page about contexts longer than the trained one: a table and a plot."""

import io
import statistics
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from groundup.report.charts import _STYLE, HELD_OUT, MODEL, _themed
from groundup.report.tables import Column, Table

Result = dict[str, Any]
Row = tuple[str, str, list[float | None]]
CANNOT = "cannot"
AS_TRAINED = "as trained"
MARKERS = "os^vD<>Px*"


def length_rows(result: Result) -> list[Row]:
    """(variant, scaling, mean over the seeds at each length; None where it cannot)."""
    return [
        (row["name"], scaling, [_mean(seeds) for seeds in scores])
        for row in result["variants"]
        for scaling, scores in row.get("lengths", {}).items()
    ]


def _mean(seeds: list[float | None]) -> float | None:
    known = [score for score in seeds if score is not None]
    return statistics.fmean(known) if known else None


def length_table(result: Result) -> Table | None:
    """Bits per byte at each length; None where no lengths were scored."""
    rows = length_rows(result)
    if not rows:
        return None
    settings = result["settings"]
    titles = [f"{n} x {settings['context_length']}" for n in settings["lengths"]]
    columns = [Column("variant"), Column("rotary embedding"), *(Column(title, "right") for title in titles)]
    rotary = {name for name, scaling, _ in rows if scaling != AS_TRAINED}
    cells = [
        [name, scaling if name in rotary else "", *(CANNOT if mean is None else f"{mean:.4f}" for mean in means)]
        for name, scaling, means in rows
    ]
    return Table(columns, cells, "Bits per byte at multiples of the trained context: means over the seeds")


def position_table(result: Result) -> Table | None:
    """Bits per token by the position in the longest context; None where no lengths were scored."""
    rows = [(v["name"], name, dict(p)) for v in result["variants"] for name, p in v.get("positions", {}).items()]
    ends = sorted({end for _, _, found in rows for end in found})
    if not ends:
        return None
    starts = [0, *ends[:-1]]
    columns = [Column("variant"), Column("rotary embedding")]
    columns += [Column(f"{start} to {end - 1}", "right") for start, end in zip(starts, ends, strict=True)]
    rotary = {variant for variant, scaling, _ in rows if scaling != AS_TRAINED}
    cells = [
        [variant, scaling if variant in rotary else "", *(f"{p[end]:.3f}" if end in p else CANNOT for end in ends)]
        for variant, scaling, p in rows
    ]
    return Table(columns, cells, "Bits per token by position in the longest context: means over the seeds")


def length_svg(result: Result) -> Markup | None:
    """Bits per byte against the context's length, a line for each row of the table; None without any."""
    rows = [row for row in length_rows(result) if any(mean is not None for mean in row[2])]
    if not rows:
        return None
    lengths = [n * result["settings"]["context_length"] for n in result["settings"]["lengths"]]
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "lengths"}):
        figure = Figure(figsize=(960 / 72, 420 / 72), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        ax = figure.subplots()
        _draw(ax, rows, lengths)
        ax.set_xscale("log", base=2)
        ax.set_xticks(lengths, [f"{length:,}" for length in lengths], fontsize=12)
        ax.set_xticks([], minor=True)
        ax.tick_params(axis="y", labelsize=12)
        ax.set_xlabel("context length in tokens", fontsize=12)
        ax.set_title("bits per byte", loc="left", fontsize=12)
        ax.grid(axis="y")
        ax.set_axisbelow(True)
        figure.legend(loc="outside right upper", frameon=False, fontsize=12)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _themed(out.getvalue(), "Bits per byte by context length", "lengths")


def _draw(ax: Axes, rows: Sequence[Row], lengths: Sequence[int]) -> None:
    for (name, scaling, means), marker in zip(rows, cycle(MARKERS), strict=False):
        points = sorted((x, y) for x, y in zip(lengths, means, strict=True) if y is not None)
        plain = scaling == AS_TRAINED
        label = name if plain else f"{name}, {scaling}"
        ax.plot(
            *zip(*points, strict=True), color=MODEL if plain else HELD_OUT, linestyle="-" if plain else "--",
            marker=marker, markersize=6, linewidth=1.5, label=label.replace("$", r"\$"),
        )  # fmt: skip
