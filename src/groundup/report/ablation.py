"""The page and the tables of a comparison, from its folder's result.json alone."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from groundup.accounting.run_ledger import Quantity
from groundup.files import read_json, write_atomic
from groundup.report.charts import _STYLE, INK, MODEL, Chart, Line, Panel, _themed, svg
from groundup.report.lengths import length_svg, length_table, position_table
from groundup.report.quantities import MISSING, number, quantity
from groundup.report.run import Series
from groundup.report.tables import Column, Table, to_html, to_text
from groundup.report.templates import fill

Result = dict[str, Any]
VARIANT_KEYS = {"name", "change", "d_ff", "parameters", "flops", "steps", "tokens", "seconds", "rate", "mean",
                "diverged", "bits_per_byte", "deviation", "losses", "gradient_norms"}  # fmt: skip
COMPARISON_KEYS = {"variant", "against", "mean", "low", "high", "verdict"}
SAYS_NOTHING = "no difference shown"


def write_ablation_report(folder: str | Path) -> Path:
    """Write report.html into a folder that `groundup ablate` has finished; returns its path. The same result gives the
    same bytes. ValueError for a folder without a whole result.json."""
    folder = Path(folder)
    result = read_result(folder)
    write_atomic(folder / "report.html", page(folder.resolve().name, result).encode("utf-8", "replace"))
    return folder / "report.html"


def ablation_text(folder: str | Path) -> str:
    """The same tables and notes for a terminal."""
    result = read_result(Path(folder))
    notes = "\n".join(f"- {note}" for note in result["notes"])
    tables = [variant_table(result), time_table(result), memory_table(result), comparison_table(result),
              length_table(result), position_table(result)]  # fmt: skip
    return "\n\n".join([*(to_text(table) for table in tables if table is not None), notes])


def read_result(folder: Path) -> Result:
    """result.json. ValueError where there is none, or it lacks what the page shows."""
    if not (folder / "result.json").is_file():
        raise ValueError(f"{folder}: no result.json; finish the comparison with groundup ablate --resume {folder}")
    result = read_json(folder / "result.json")
    missing = {"variants", "comparisons", "notes", "settings"} - (result.keys() if isinstance(result, dict) else set())
    if missing:
        raise ValueError(f"{folder / 'result.json'}: damaged, it has no {', '.join(sorted(missing))}")
    for name, needed in (("variants", VARIANT_KEYS), ("comparisons", COMPARISON_KEYS)):
        _check_rows(folder / "result.json", name, result[name], needed)
    return result


def _check_rows(file: Path, name: str, rows: Any, needed: set[str]) -> None:
    """ValueError for a row that is no object, or lacks what the page shows of it."""
    for place, row in enumerate(rows if isinstance(rows, list) else [rows]):
        lacks = needed - (row.keys() if isinstance(row, dict) else set())
        if not isinstance(rows, list) or lacks:
            raise ValueError(
                f"{file}: damaged, {name}[{place}] has no {', '.join(sorted(lacks)) or 'place in a list'}; make it "
                f"again from the runs: groundup ablate --resume {file.parent}"
            )


def page(name: str, result: Result) -> str:
    """The HTML; every name and note is escaped."""
    return fill(
        "ablation.html.j2",
        name=name,
        lede=lede(result),
        interval_chart=interval_svg(result["comparisons"]),
        comparison_table=to_html(comparison_table(result)),
        variant_table=to_html(variant_table(result)),
        time_table=Markup("").join(to_html(table) for table in (time_table(result), memory_table(result)) if table),
        length_chart=length_svg(result),
        length_tables=[to_html(t) for t in (length_table(result), position_table(result)) if t is not None],
        curves=[svg(chart, 380, 240) for chart in curves(result) if chart],
        gradients=to_html(table) if (table := gradient_table(result)) else "",
        notes=result["notes"],
    )


def lede(result: Result) -> str:
    """What was shown, in a sentence."""
    shown = [f"{c['variant']} is {c['verdict']} than {c['against']}" for c in _decided(result["comparisons"])]
    rest = len(result["comparisons"]) - len(shown)
    said = "; ".join(shown) or "No difference was shown"
    more = f"; of {rest} more nothing is shown" if shown and rest else ""
    settings = result["settings"]
    return f"{said}{more}. {len(result['variants'])} variants, {settings['seeds']} seeds, equal {settings['match']}."


def _decided(comparisons: Sequence[Result]) -> list[Result]:
    return [c for c in comparisons if c["verdict"] != SAYS_NOTHING]


def variant_table(result: Result) -> Table:
    """What each variant had, and what it scored."""
    titles = ("d_ff", "parameters", "FLOPs", "steps", "tokens", "seconds", "rate", "bits per byte", "deviation")
    columns = [Column("variant"), *(Column(title, "right") for title in titles), Column("change")]
    rows = [
        [
            v["name"],
            f"{v['d_ff']:,}" if v["d_ff"] else MISSING,
            f"{v['parameters']:,}",
            f"{v['flops']:.3g}",
            f"{v['steps']:,}",
            f"{v['tokens']:,}",
            f"{v['seconds']:.1f}",
            f"{v['rate']:g}",
            (MISSING if v["mean"] is None else f"{v['mean']:.4f}") + _lost(v["diverged"], len(v["bits_per_byte"])),
            MISSING if v["deviation"] is None else f"{v['deviation']:.4f}",
            v["change"],
        ]
        for v in result["variants"]
    ]
    return Table(columns, rows, "Each variant: means over the seeds; the deviation is that of single runs")


def time_table(result: Result) -> Table | None:
    """The time of a step, predicted before the runs; None where a result has none."""
    return _predictions(result, "step_seconds", "Time of a step: as timed before the runs, and their mean")


def memory_table(result: Result) -> Table | None:
    """The memory of a step, predicted before the runs; None where a result has none."""
    title = "Memory of a step: bytes that tensors hold at most, rehearsed before the runs, and recorded in one of them"
    return _predictions(result, "peak_memory_bytes", title)


def _predictions(result: Result, name: str, title: str) -> Table | None:
    rows = []
    for v in result["variants"]:
        found = _quantity(v, name)
        if found is not None and found.error is not None:
            sides = [quantity(name, value) for value in (found.predicted, found.measured)]
            rows.append([v["name"], *sides, f"{100 * found.error:+.1f} %".replace("-", "−")])
    columns = [Column("variant"), *(Column(title, "right") for title in ("predicted", "measured", "error"))]
    return Table(columns, rows, title) if rows else None


def _quantity(variant: Result, name: str) -> Quantity | None:
    sides = [variant.get(side) for side in ("predicted", "measured")]
    pair = [number(side.get(name)) if isinstance(side, dict) else None for side in sides]
    return None if pair == [None, None] else Quantity.of(name, *pair)


def _lost(diverged: int, runs: int) -> str:
    return f" ({diverged} of {runs} diverged)" if diverged else ""


def comparison_table(result: Result) -> Table:
    """The differences with their intervals and verdicts."""
    columns = [Column("variant"), Column("against"), *(Column(t, "right") for t in ("difference", "95 % interval",
               "p", "p, corrected")), Column("verdict")]  # fmt: skip
    comparisons = result["comparisons"]
    rows = [
        [c["variant"], c["against"], _signed(c["mean"]),
         MISSING if c["low"] is None else f"{_signed(c['low'])} to {_signed(c['high'])}",
         _p(c["p"]), _p(c["p_holm"]), c["verdict"] + _lost(c["diverged"], len(c["differences"]))]
        for c in comparisons
    ]  # fmt: skip
    emphasis = frozenset(i for i, c in enumerate(comparisons) if c["verdict"] != SAYS_NOTHING)
    return Table(columns, rows, "Differences in bits per byte, paired by seed (negative is better)", emphasis)


def _signed(x: float | None) -> str:
    return MISSING if x is None else f"{x:+.4f}".replace("-", "−")


def _p(p: float | None) -> str:
    return MISSING if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def is_ablation(folder: str | Path) -> bool:
    """Whether a folder holds a comparison of variants, not a run."""
    file = Path(folder) / "config.json"
    config = read_json(file) if file.is_file() else None
    return isinstance(config, dict) and "ablation" in config


def gradient_table(result: Result) -> Table | None:
    """Gradient norms of the first seed, from the first block to the last; None where there are none."""
    rows = []
    for variant in result["variants"]:
        norms = variant["gradient_norms"][0] if variant["gradient_norms"] else {}
        start, end = norms.get("start", []), norms.get("end", [])
        cells = [f"{_norm(a)} → {_norm(b)}" for a, b in zip(start, end or [None] * len(start), strict=True)]
        rows.append([variant["name"], *cells])
    layers = max((len(row) - 1 for row in rows), default=0)
    if not layers:
        return None
    rows = [row + [MISSING] * (layers + 1 - len(row)) for row in rows]  # variants may differ in depth
    return Table([Column("variant"), *(Column(f"block {i + 1}", "right") for i in range(layers))], rows)


def _norm(x: float | None) -> str:
    return MISSING if x is None else f"{x:.3g}"


def curves(result: Result) -> list[Chart]:
    """Training loss of each compared variant, with that of its reference."""
    tokens = result["settings"]["batch_size"] * result["settings"]["context_length"]
    mean = {v["name"]: mean_curve(v["losses"], tokens) for v in result["variants"]}
    return [
        Chart(
            f"Loss of {c['variant']} and {c['against']}",
            [Panel(f"{c['variant']} against {c['against']}",
                   [Line(mean[c["against"]], INK), Line(mean[c["variant"]], MODEL)], crop=True)],
            "tokens seen",
        )
        for c in result["comparisons"]
    ]  # fmt: skip


def mean_curve(curves: Sequence[Sequence[Sequence[float]]], tokens_per_step: int) -> Series:
    """The mean of the seeds' curves at the points that all of them reached."""
    points = list(zip(*curves, strict=False))
    x = [float(point[0][0] * tokens_per_step) for point in points]
    return Series(x, [math.fsum(y for _, y in point) / len(point) for point in points])


def interval_svg(comparisons: Sequence[Result]) -> Markup | None:
    """A row for each comparison: its seeds as points, its mean and interval as a bar; None without any."""
    drawn = [c for c in comparisons if any(d is not None for d in c["differences"])]
    if not drawn:
        return None
    height = 70 + 34 * len(drawn)
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "ablation"}):
        figure = Figure(figsize=(960 / 72, height / 72), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        ax = figure.subplots()
        for row, c in enumerate(reversed(drawn)):
            seeds = [d for d in c["differences"] if d is not None]
            ax.plot(seeds, [row] * len(seeds), "o", color=INK, markersize=4, alpha=0.6)
            if c["low"] is not None:
                error = [[c["mean"] - c["low"]], [c["high"] - c["mean"]]]
                fill = MODEL if c["verdict"] != SAYS_NOTHING else "none"
                ax.errorbar([c["mean"]], [row], xerr=error, fmt="s", color=MODEL, markerfacecolor=fill, capsize=4)
        ax.axvline(0, color=INK, linewidth=1)
        names = [f"{c['variant']} against {c['against']}" for c in reversed(drawn)]
        ax.set_yticks(range(len(drawn)), names, fontsize=12)
        ax.set_ylim(-0.6, len(drawn) - 0.4)
        ax.set_xlabel("difference in bits per byte", fontsize=12)
        ax.grid(axis="x")
        ax.set_axisbelow(True)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _themed(out.getvalue(), "Differences with their intervals", "ablation")
