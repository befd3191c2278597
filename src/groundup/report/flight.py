"""What the flight recorder saw, as heat maps of layers by steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from groundup.report.quantities import number
from groundup.report.run import as_object

WIDE, NARROW = 960, 380
MOST_COLUMNS, MOST_LAYERS = {WIDE: 64, NARROW: 26}, 64
LABEL, CELL, FOOT = 104, 15, 34
FAINTEST = 0.06
STOPPED = ("skip", "rewind", "stop")

SHOWN = {
    "grad_norm": ("Gradient norm", "Before clipping. Where a spike begins, a layer grows darker than the others."),
    "activation_max": ("Largest activation", "Of each block's output. Growth over a whole run ends in an overflow."),
    "update_ratio": ("Update over weight", "Norm of a step over norm of the weights; about 0.001 is usual for AdamW."),
}


@dataclass(frozen=True)
class HeatMap:
    """A measure of each layer at each step; None where it was not finite."""

    title: str
    caption: str
    layers: list[str]
    steps: list[float]
    values: list[list[float | None]]
    bad_steps: list[float]

    @property
    def span(self) -> tuple[float, float]:
        """The smallest and the largest value above zero; colours are spread over their logarithms."""
        known = [value for row in self.values for value in row if value is not None and value > 0]
        return (min(known), max(known)) if known else (1.0, 1.0)


@dataclass(frozen=True)
class Drawn:
    """For wide and for narrow screens."""

    title: str
    legend: str
    wide: Markup
    narrow: Markup
    caption: str


def heat_maps(records: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]] = ()) -> list[HeatMap]:
    """One for each measure that at least two records have."""
    records = [record for record in records if number(record.get("step")) is not None]
    bad = [number(event.get("step")) for event in events if event.get("event") in STOPPED]
    found = []
    for measure, (title, caption) in SHOWN.items():
        having = [record for record in records if as_object(record.get(measure))]
        if len(having) < 2:
            continue
        layers = list(dict.fromkeys(layer for record in having for layer in record[measure]))[:MOST_LAYERS]
        steps = [number(record["step"]) or 0.0 for record in having]
        values = [[number(record[measure].get(layer)) for record in having] for layer in layers]
        found.append(HeatMap(title, caption, layers, steps, values, [step for step in bad if step is not None]))
    return found


def draw(heat_map: HeatMap) -> Drawn:
    low, high = heat_map.span
    legend = f"from {low:.3g} (pale) to {high:.3g} (dark), on a logarithmic scale"
    return Drawn(heat_map.title, legend, svg(heat_map, WIDE), svg(heat_map, NARROW), heat_map.caption)


def binned(values: Sequence[float | None], columns: int) -> list[float | None]:
    """At most `columns` values, each the largest of its neighbours, so that no peak is lost; None wins over all.

    >>> binned([1.0, 5.0, 2.0, None, 3.0], 3)
    [5.0, None, 3.0]
    """
    size = math.ceil(len(values) / columns)
    parts = [values[i : i + size] for i in range(0, len(values), size)]
    return [None if None in part else max(value for value in part if value is not None) for part in parts]


def svg(heat_map: HeatMap, width: int) -> Markup:
    """Rectangles in one colour of the page's theme, whose opacity is the value."""
    size = math.ceil(len(heat_map.steps) / MOST_COLUMNS[width])
    columns = math.ceil(len(heat_map.steps) / size)
    cell = (width - LABEL) / columns
    foot = CELL * len(heat_map.layers)
    parts = []
    for line, (layer, values) in enumerate(zip(heat_map.layers, heat_map.values, strict=True)):
        parts.append(_text(LABEL - 8, CELL * line + 11.5, layer, "end"))
        for column, value in enumerate(binned(values, MOST_COLUMNS[width])):
            parts.append(_cell(LABEL + cell * column, CELL * line, cell, _opacity(value, *heat_map.span)))
    for step in heat_map.bad_steps:
        at = sum(1 for seen in heat_map.steps if seen < step) / size  # records before it, in columns
        parts.append(Markup('<path d="M{:.1f} {}v{}" stroke="var(--bad)" stroke-width="2"/>').format(
            LABEL + cell * min(at, columns), 0, foot))  # fmt: skip
    for step, anchor, x in ((heat_map.steps[0], "start", LABEL), (heat_map.steps[-1], "end", width)):
        parts.append(_text(x, foot + 18, f"step {step:,.0f}", anchor))
    opening = '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{} by layer and step">'
    return Markup(opening).format(width, foot + FOOT, heat_map.title) + Markup("\n").join(parts) + Markup("</svg>")


def _opacity(value: float | None, low: float, high: float) -> float | None:
    if value is None:
        return None
    if value <= 0 or high <= low:
        return FAINTEST
    return FAINTEST + (1 - FAINTEST) * (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))


def _cell(x: float, y: float, width: float, opacity: float | None) -> Markup:
    color, shown = ("--bad", 1.0) if opacity is None else ("--model", opacity)
    rectangle = '<rect x="{:.1f}" y="{}" width="{:.1f}" height="{}" fill="var({})" fill-opacity="{:.2f}"/>'
    return Markup(rectangle).format(x, y, max(width - 0.5, 0.5), CELL - 1, color, shown)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    line = '<text x="{}" y="{}" text-anchor="{}" font-size="11" fill="var(--ink-soft)">{}</text>'
    return Markup(line).format(x, y, anchor, text)
