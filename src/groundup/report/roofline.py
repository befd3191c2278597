"""The roofline of a profiled step: what each operation reached, under what the machine allows at its intensity."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes

from groundup.accounting import Ceiling, Machine
from groundup.profiling import Profile
from groundup.profiling.points import RooflinePoint
from groundup.report.charts import HELD_OUT, INK, MODEL, PAPER, drawn
from groundup.report.figure import FigurePage, write_figure_page
from groundup.report.tables import Column, Table

NOTES = (
    "The roofs are measured: matrix products of the shape of a feed-forward layer, by precision; a copy larger than "
    "the caches, bytes read and written. A machine whose caches hold the operands can rise above the slope.",
    "FLOPs and bytes are counted: every operand read once, every result written once. The time is the profiler's, "
    "forward, backward and update together.",
    "Without FLOPs there is no point: the embedding's lookup, casts and the data are left out.",
)
LINE = 15
"""Pixels that a label is high."""


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: "Box") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )


def ceilings(machine: Machine, device: Ceiling) -> list[Ceiling]:
    """One for each precision measured with the machine's threads, the fastest first; else the profile's own."""
    ending = f" x{machine.threads}"
    rates = {name.removesuffix(ending): rate for name, rate in machine.gemm_flops.items() if name.endswith(ending)}
    found = [Ceiling(name, rate, device.bandwidth) for name, rate in rates.items() if rate]
    return sorted(found, key=lambda c: -c.peak_flops) or [replace(device, name="matrix products")]


def roofline_svg(
    points: Sequence[RooflinePoint], roofs: Sequence[Ceiling], width: int = 960, height: int = 520
) -> Markup:
    """Points as large as their share of the time, on axes whose every step is a factor of ten."""
    all_seconds = sum(p.seconds for p in points)

    def draw(ax: Axes) -> None:
        low, high = _x_range(points, roofs)
        for i, roof in enumerate(roofs):
            ridge = min(max(roof.ridge, low), high)
            if i == 0:
                ax.plot([low, ridge], [low * roof.bandwidth, ridge * roof.bandwidth], color=INK, linewidth=1.5)
                middle = (low * ridge) ** 0.5
                ax.annotate(f"memory, {roof.bandwidth / 1e9:.0f} GB/s", (middle, middle * roof.bandwidth), (-8, 4),
                            textcoords="offset points", ha="right", fontsize=12)  # fmt: skip
            ax.plot([ridge, high], [roof.peak_flops] * 2, color=INK, linewidth=1.5, linestyle="-" if i == 0 else "--")
            ax.annotate(f"{roof.name}, {roof.peak_flops / 1e9:,.0f} GFLOP/s", (high, roof.peak_flops), (0, 4),
                        textcoords="offset points", ha="right", fontsize=12)  # fmt: skip
        for p in points:
            area = 40 + 900 * p.seconds / all_seconds
            ax.scatter([p.intensity], [p.flops_per_second], area, color=MODEL, alpha=0.75, linewidths=0)
        ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=_y_range(points, roofs))
        ax.set_xlabel("FLOPs per byte", fontsize=12)
        ax.set_ylabel("FLOP/s", fontsize=12)
        ax.tick_params(labelsize=12, which="both", length=0)
        ax.grid(True)
        _label(ax, points)

    return drawn(draw, "Roofline", width, height)


def _x_range(points: Sequence[RooflinePoint], roofs: Sequence[Ceiling]) -> tuple[float, float]:
    at = [p.intensity for p in points] + [roof.ridge for roof in roofs]
    return min(at) / 2.5, max(at) * 6


def _y_range(points: Sequence[RooflinePoint], roofs: Sequence[Ceiling]) -> tuple[float, float]:
    rates = [p.flops_per_second for p in points]
    return min(rates) / 2.5, 2 * max(*rates, *(roof.peak_flops for roof in roofs))


def _label(ax: Axes, points: Sequence[RooflinePoint]) -> None:
    """Names beside their points, moved up or down until none covers another."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    places = {p: _pixels(ax, p) for p in points}
    taken = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in places.values()]
    for p, (x, y) in sorted(places.items(), key=lambda item: -item[1][1]):
        offset, box = next(_free(x, y, 6.6 * len(p.name), taken))
        taken.append(box)
        ax.annotate(p.name, (p.intensity, p.flops_per_second), offset, textcoords="offset points", fontsize=12,
                    va="center", ha="left" if offset[0] > 0 else "right", color=HELD_OUT,
                    bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 1})  # fmt: skip


def _pixels(ax: Axes, point: RooflinePoint) -> tuple[float, float]:
    x, y = ax.transData.transform((point.intensity, point.flops_per_second))
    return float(x), float(y)


def _free(x: float, y: float, width: float, taken: Sequence[Box]) -> Iterator[tuple[tuple[int, int], Box]]:
    for step in range(60):
        dy = math.ceil(step / 2) * LINE * (1 if step % 2 else -1)
        for left, dx in ((x + 12, 12), (x - 12 - width, -12)):
            box = Box(left, y + dy - LINE / 2, left + width, y + dy + LINE / 2)
            if not any(box.meets(other) for other in taken):
                yield (dx, dy), box
    yield (12, 0), Box(x, y, x, y)


def roofline_table(points: Sequence[RooflinePoint], device: Ceiling) -> Table:
    """Each operation's rate beside what the device allows at its intensity."""
    columns = [Column("operation"), *(Column(title, "right") for title in (
        "FLOPs", "bytes", "FLOPs per byte", "ms", "GFLOP/s", "roof, GFLOP/s", "of the roof"))]  # fmt: skip
    rows = [
        [p.name, f"{p.flops:,}", f"{p.bytes_moved:,}", f"{p.intensity:.2f}", f"{1e3 * p.seconds:.3g}",
         f"{p.flops_per_second / 1e9:,.2f}", f"{p.roof(device) / 1e9:,.1f}",
         f"{p.flops_per_second / p.roof(device):.0%}"]
        for p in points
    ]  # fmt: skip
    return Table(columns, rows, "Operations, the one with most time first")


def write_roofline(path: str | Path, profile: Profile, points: Sequence[RooflinePoint], machine: Machine) -> Path:
    """The page of one profile; returns its path. ValueError when no operation of the step has FLOPs."""
    if not points:
        raise ValueError("roofline: no operation of this step has FLOPs")
    device, most = profile.device, points[0]
    bound = "arithmetic" if most.intensity > device.ridge else "memory"
    lede = (
        f"Most of the time goes to {most.name}. At {most.intensity:.1f} FLOPs per byte {bound} is its bound, and it "
        f"reaches {most.flops_per_second / most.roof(device):.0%} of that. "
        f"Below {device.ridge:.1f} FLOPs per byte memory is."
    )
    caption = "Larger points take more of the time. The distance below the roof is what is left to gain."
    charts = [(roofline_svg(points, ceilings(machine, device)), caption)]
    return write_figure_page(path, FigurePage(
        f"Roofline, {profile.settings.phase}", device.name, lede, charts, [roofline_table(points, device)], NOTES
    ))  # fmt: skip
