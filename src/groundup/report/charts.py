"""Curves as inline SVG whose colours and fonts are the page's, so that they follow its light or dark theme."""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from groundup.report.quantities import decimal
from groundup.report.run import Series

MOST_POINTS = 400

# Matplotlib draws in these; the SVG says the CSS variable of the page's theme instead.
_THEME = {"#010201": "--ink-soft", "#010202": "--rule", "#010203": "--model", "#010204": "--held-out",
          "#010205": "--paper"}  # fmt: skip
INK, _RULE, MODEL, HELD_OUT, PAPER = _THEME

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "axes.edgecolor": _RULE,
    "axes.labelcolor": INK,
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": _RULE,
    "grid.linewidth": 1.0,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "path.simplify": True,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}


@dataclass(frozen=True)
class Line:
    """A series in one of the theme's colours; `dots` marks each point, for the few of a measurement."""

    series: Series
    color: str = MODEL
    dots: bool = False


@dataclass(frozen=True)
class Panel:
    """Axes that share x with the other panels; `share` is its part of the height.

    `crop` leaves out the first steps' high values, which would press everything else flat.
    """

    title: str
    lines: Sequence[Line]
    share: float = 1.0
    crop: bool = False
    from_zero: bool = False


@dataclass(frozen=True)
class Chart:
    """What a person sees without seeing it (`name`), and the panels from top to bottom."""

    name: str
    panels: Sequence[Panel]
    x_label: str

    def __bool__(self) -> bool:
        return any(line.series for panel in self.panels for line in panel.lines)


def svg(chart: Chart, width: int, height: int) -> Markup:
    """The chart as one <svg> that scales with its frame; `width` x `height` are pixels at full size.

    The same chart gives the same bytes: no date, no version, and ids that depend on nothing but the name.
    """
    salt = re.sub(r"\W+", "-", f"{chart.name}-{width}")
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        figure.get_layout_engine().set(h_pad=0.06, w_pad=0.02, hspace=0.04)  # type: ignore[union-attr]
        panels = [panel for panel in chart.panels if any(line.series for line in panel.lines)]
        axes = figure.subplots(
            len(panels), 1, sharex=True, squeeze=False, height_ratios=[panel.share for panel in panels]
        )[:, 0]
        for panel, ax in zip(panels, axes, strict=True):
            _draw(panel, ax)
        axes[-1].set_xlabel(chart.x_label, fontsize=12)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _themed(out.getvalue(), chart.name, salt)


def drawn(draw: Callable[[Axes], None], name: str, width: int, height: int) -> Markup:
    """As `svg`, for a chart that is no curve: `draw` gets empty axes and draws in the theme's colours."""
    salt = re.sub(r"\W+", "-", f"{name}-{width}")
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        ax = figure.subplots()
        ax.set_axisbelow(True)
        draw(ax)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _themed(out.getvalue(), name, salt)


def _draw(panel: Panel, ax: Axes) -> None:
    for line in panel.lines:
        thin = thinned(line.series)
        if line.dots:
            ax.plot(thin.x, thin.y, "o-", color=line.color, linewidth=1.5, markersize=4.5)
        else:
            ax.plot(thin.x, thin.y, color=line.color, linewidth=1.75, marker="o" * (len(thin.x) == 1) or None)
    ax.set_title(panel.title, loc="left", fontsize=12, color=INK, pad=8)
    ax.tick_params(labelsize=12, pad=6)
    ax.grid(axis="y")
    ax.set_axisbelow(True)
    ax.margins(x=0.01, y=0.08)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _tick(x)))
    ax.yaxis.set_major_locator(MaxNLocator(5 if panel.share >= 1 else 2))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _tick(y)))
    if panel.crop:
        ax.set_ylim(*cropped_range([line.series for line in panel.lines]))
    if panel.from_zero:
        ax.set_ylim(bottom=0)


def _tick(x: float) -> str:
    if abs(x) >= 1000:
        return re.sub(r"(\.\d*?)0+ ", r"\1 ", decimal(x, "")).replace(". ", " ").strip()
    return f"{x:,.6g}" if abs(x) >= 1e-3 or not x else f"{x:.0e}".replace("e-0", "e-")


def thinned(series: Series) -> Series:
    """At most MOST_POINTS points, each the mean of as many neighbours, and the last point as it is."""
    size = math.ceil(len(series.x) / MOST_POINTS)
    if size <= 1:
        return series
    starts = range(0, len(series.x), size)
    mean = Series(*([_mean(values[i : i + size]) for i in starts] for values in (series.x, series.y)))
    mean.x[-1], mean.y[-1] = series.x[-1], mean.y[-1]
    return mean


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def cropped_range(series: Sequence[Series]) -> tuple[float, float]:
    """The y range of all points but those of the first 4 % of the way, when these reach far above the rest."""
    points = [(x, y) for each in series for x, y in zip(each.x, each.y, strict=True)]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    later = [y for x, y in points if x >= first + 0.04 * (last - first)]
    low, high, top = min(y for _, y in points), max(later), max(y for _, y in points)
    if top - low <= 1.3 * (high - low) or high == low:
        high = top
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _themed(text: str, name: str, salt: str) -> Markup:
    """Matplotlib's file as an inline element: no prolog, no metadata, theme colours, the page's font."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    # Names of groups repeat from chart to chart, and nothing refers to them.
    text = re.sub(r' id="[\w.]+_\d+"', "", text)
    text = text.replace("<g/>", "")
    # A style element inside an inline SVG would style the whole page.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    text = re.sub(r"font: (?:[^;\"]*? )?(\d+(?:\.\d+)?)px [^;\"]*", r"font-size: \1px", text)
    for sentinel, variable in _THEME.items():
        text = text.replace(sentinel, f"var({variable})")
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box, "matplotlib wrote an SVG without a viewBox"
    opening = Markup('<svg class="chart" viewBox="{}" role="img" aria-label="{}">').format(box[1], name)
    text = re.sub(r"<svg[^>]*>", "", text, count=1)
    return opening + Markup(re.sub(r"\n\s*", "\n", text).strip())
