"""The memory of a profiled training step: bytes over its time, and each phase's peak, predicted beside measured."""

import math
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes

from groundup.accounting.simulate import BACKWARD
from groundup.profiling import Profile
from groundup.profiling.phases import STEADY, MemorySpans, PhaseMemory
from groundup.report.charts import INK, MODEL, MOST_POINTS, drawn
from groundup.report.figure import FigurePage, write_figure_page
from groundup.report.quantities import binary
from groundup.report.tables import Column, Table

NOTES = (
    "Predicted: the step's own code on tensors without storage, which need no memory. Measured: every allocation and "
    "free of one step, recorded by torch's profiler.",
    "Bytes are those that tensors hold, as the allocator hands them out. What a process has resident is more: "
    "libraries, their scratch, and blocks that are free but not given back.",
)
MIB = 2**20
WIDTH = 0.38


def phases_svg(rows: Sequence[PhaseMemory], width: int = 960, height: int = 380) -> Markup:
    """Two bars for each phase, predicted on the left and measured on the right, each with its MiB on top."""

    def draw(ax: Axes) -> None:
        for side, color, name in ((-0.5, INK, "predicted"), (0.5, MODEL, "measured")):
            values = [getattr(row, name) / MIB for row in rows]
            bars = ax.bar([i + side * WIDTH for i in range(len(rows))], values, 0.95 * WIDTH, color=color, label=name)
            ax.bar_label(bars, [f"{value:,.1f}" for value in values], fontsize=12, padding=2)
        ax.set_xticks(range(len(rows)), [row.phase for row in rows])
        ax.set_ylabel("MiB at the peak", fontsize=12)
        ax.set_ylim(0, 1.15 * max(max(row.predicted, row.measured) for row in rows) / MIB)
        ax.tick_params(labelsize=12, length=0)
        ax.legend(frameon=False, fontsize=12, loc="upper left", ncols=2)

    return drawn(draw, "Memory by phase, predicted and measured", width, height)


def timeline_svg(step: MemorySpans, steady: int, width: int = 960, height: int = 320) -> Markup:
    """Bytes over the step, with the steady ones as a line, and where forward ends and the update begins."""

    def draw(ax: Axes) -> None:
        kept = _highest(step.points)
        ax.step([1e3 * at for at, _ in kept], [size / MIB for _, size in kept], where="post", color=MODEL,
                linewidth=1.5)  # fmt: skip
        ax.axhline(steady / MIB, color=INK, linewidth=1.0, linestyle="--")
        ax.annotate("steady", (0, steady / MIB), (2, 4), textcoords="offset points", fontsize=12)
        top = max(size for _, size in step.points) / MIB
        ends = {name: (1e3 * begin, 1e3 * end) for name, (begin, end) in step.spans.items()}
        (_, forward), (update, _) = ends.values()
        for name, (begin, end) in {**ends, BACKWARD: (forward, update)}.items():
            ax.axvline(begin, color=INK, linewidth=1.0, linestyle=":")
            ax.text((begin + end) / 2, 1.08 * top, name, fontsize=12, ha="center", va="center")
        ax.set_ylim(0, 1.15 * top)
        ax.set_xlabel("ms", fontsize=12)
        ax.set_ylabel("MiB", fontsize=12)
        ax.tick_params(labelsize=12, length=0)

    return drawn(draw, "Memory over a step", width, height)


def _highest(points: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """Of as many neighbours as make a long step drawable the highest: a mean would cut off the peak."""
    size = math.ceil(len(points) / MOST_POINTS)
    return [max(points[i : i + size], key=lambda point: point[1]) for i in range(0, len(points), size)]


def phases_table(rows: Sequence[PhaseMemory]) -> Table:
    """The bars as figures, with what each phase has beyond the steady bytes."""
    columns = [Column("phase"), *(Column(title, "right") for title in (
        "predicted", "measured", "error", "beyond steady, predicted", "measured"))]  # fmt: skip
    steady = next(row for row in rows if row.phase == STEADY)
    cells = [
        [row.phase, binary(row.predicted), binary(row.measured), f"{row.error:+.1%}",
         binary(row.predicted - steady.predicted), binary(row.measured - steady.measured)]
        for row in rows
    ]  # fmt: skip
    return Table(columns, cells, "Bytes that tensors hold at most")


def write_memory(path: str | Path, profile: Profile, rows: Sequence[PhaseMemory], step: MemorySpans) -> Path:
    """The page of one profile; returns its path. OSError when the file cannot be written."""
    steady, peak = rows[0], max(rows[1:], key=lambda row: row.measured)
    lede = (
        f"A step holds most in its {peak.phase}: {binary(peak.measured)}, {peak.error:+.1%} against the prediction. "
        f"{binary(steady.measured)} of that are there all the time."
    )
    charts = [
        (phases_svg(rows), "The most that is held in each phase, and between steps."),
        (timeline_svg(step, steady.measured), "One step as it was recorded; the profiler makes it longer."),
    ]
    tables = [phases_table(rows)]
    return write_figure_page(path, FigurePage("Memory, train", profile.device.name, lede, charts, tables, NOTES))
