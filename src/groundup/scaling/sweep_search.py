"""Which rates to train at next, from the runs so far: a grid, then up to where it diverges, then halving the gap.

All is decided from the list of finished runs, so a sweep that was killed goes on where it was.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from groundup.scaling.sweep_settings import SweepSettings

Run = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One place in the grid of everything but rates."""

    batch_size: int
    weight_decay: float


@dataclass(frozen=True)
class Job:
    """A run that is due."""

    cell: Cell
    rate: float
    seed: int


@dataclass(frozen=True)
class Edge:
    """The edge of stability lies between these rates; None where no rate on that side was found."""

    stable: float | None
    diverged: float | None

    @property
    def factor(self) -> float | None:
        """How well it is known."""
        return None if self.stable is None or self.diverged is None else self.diverged / self.stable


def cells(settings: SweepSettings) -> list[Cell]:
    """Every batch size with every weight decay."""
    return [Cell(batch, decay) for batch in settings.batch_sizes for decay in settings.weight_decays]


def due(settings: SweepSettings, runs: Sequence[Run]) -> list[Job]:
    """The runs that can be made now, all seeds of each rate; none when the sweep is done."""
    done = {job_of(run) for run in runs}
    jobs = [
        Job(cell, rate, settings.seed + number)
        for rate in settings.grid
        for cell in cells(settings)
        for number in range(settings.seeds)
    ]
    if left := [job for job in jobs if job not in done]:
        return left
    further = []
    for cell in cells(settings):
        # Rates that the search has begun and not finished: a kill may have come between their seeds.
        begun = {run["rate"] for run in runs_of(cell, runs)}
        rates = begun if (rate := next_rate(settings, edge(cell, runs))) is None else {*begun, rate}
        seeds = range(settings.seed, settings.seed + settings.seeds)
        jobs = [Job(cell, rate, seed) for rate in sorted(rates) for seed in seeds]
        left = [job for job in jobs if job not in done]
        further += [job for job in left if job.rate in begun] or left
    return further


def edge(cell: Cell, runs: Sequence[Run]) -> Edge:
    """The largest rate at which no seed diverged, and the smallest above it at which one did."""
    mine = runs_of(cell, runs)
    lost = {run["rate"] for run in mine if run["diverged"]}
    stable = max((run["rate"] for run in mine if run["rate"] not in lost), default=None)
    above = [rate for rate in lost if stable is None or rate > stable]
    return Edge(stable, min(above, default=None))


def next_rate(settings: SweepSettings, found: Edge) -> float | None:
    """Above all rates while none diverges, then the geometric middle of the gap; None when it is narrow enough.

    >>> settings = SweepSettings(low=0.01, high=0.04, highest=1.0, edge_factor=1.5)
    >>> [next_rate(settings, found) for found in (Edge(0.04, None), Edge(0.04, 0.16), Edge(0.1, 0.14))]
    [0.08, 0.08, None]
    """
    if found.stable is None:
        return None
    if found.diverged is None:
        higher = _rounded(found.stable * settings.ratio)
        return higher if higher <= settings.highest else None
    if found.diverged / found.stable <= settings.edge_factor:
        return None
    middle = _rounded(math.sqrt(found.stable * found.diverged))
    return middle if found.stable < middle < found.diverged else None


def runs_of(cell: Cell, runs: Sequence[Run]) -> list[Run]:
    """Those of one cell."""
    return [run for run in runs if (run["batch_size"], run["weight_decay"]) == (cell.batch_size, cell.weight_decay)]


def job_of(run: Run) -> Job:
    """What was due when this run was made."""
    return Job(Cell(run["batch_size"], run["weight_decay"]), run["rate"], run["seed"])


def most_runs(settings: SweepSettings) -> int:
    """Runs of a sweep whose edge lies within the grid or one rate above it."""
    halvings = math.ceil(math.log2(max(1.0, math.log(settings.ratio) / math.log(settings.edge_factor))))
    return len(cells(settings)) * settings.seeds * (len(settings.grid) + 1 + halvings)


def _rounded(rate: float) -> float:
    return float(f"{rate:.4g}")
