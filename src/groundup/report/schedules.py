"""A page of learning-rate schedules: what a run will do with its rate, seen before it runs."""

from collections.abc import Callable, Mapping
from pathlib import Path

from markupsafe import Markup

from groundup.report.charts import Chart, Line, Panel, svg
from groundup.report.figure import FigurePage, write_figure_page
from groundup.report.run import Series
from groundup.report.tables import Column, Table

Multiplier = Callable[[int], float]
FIGURES = ("first", "highest", "last", "mean")


def schedule_chart(schedules: Mapping[str, Multiplier], steps: int) -> Markup:
    """One panel per schedule, each the multiplier of the base rate at every one of the first `steps` steps.

    ValueError for no schedules or no steps.
    """
    if not schedules or steps < 1:
        raise ValueError(f"schedule_chart: {len(schedules)} schedules over {steps} steps; expected at least 1 of each")
    x = [float(step) for step in range(steps)]
    panels = [
        Panel(name, [Line(Series(x, [schedule(step) for step in range(steps)]))], from_zero=True)
        for name, schedule in schedules.items()
    ]
    return svg(Chart("The rate's multiplier at each step", panels, "step"), 680, 60 + 110 * len(panels))


def write_schedules(path: str | Path, schedules: Mapping[str, Multiplier], steps: int) -> Path:
    """Write the chart and a table of each schedule's mean, which is what a run's length in full-rate steps comes to."""
    rows = []
    for name, schedule in schedules.items():
        values = [schedule(step) for step in range(steps)]
        rows.append([name, f"{values[0]:.3g}", f"{max(values):.3g}", f"{values[-1]:.3g}", f"{sum(values) / steps:.3f}"])
    page = FigurePage(
        kicker="schedules",
        title="Learning-rate schedules",
        lede=f"What multiplies the base rate over {steps:,} steps.",
        charts=[(schedule_chart(schedules, steps), "One panel per schedule; all begin at zero.")],
        tables=[Table([Column("schedule"), *(Column(name, "right") for name in FIGURES)], rows, "Multipliers")],
        notes=["Each value is what the schedule says of that step. ClockDecay looks at the clock too: no page."],
    )
    return write_figure_page(path, page)
