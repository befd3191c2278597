"""From the runs of a sweep to result.json: each rate's scores, the edge of stability and the best rate."""

import statistics
from collections.abc import Sequence
from typing import Any

from groundup.config import plural, to_dict
from groundup.scaling.sweep_fit import Score, best_rate
from groundup.scaling.sweep_search import Cell, Run, cells, edge, runs_of
from groundup.scaling.sweep_settings import SweepSettings

LOOSE = 1.01
"""Rates are rounded, so neighbours of the grid are not quite `ratio` apart."""


def summarize(settings: SweepSettings, lengths: dict[str, int], runs: Sequence[Run]) -> dict[str, Any]:
    """The result, from every run."""
    rows = [_cell(cell, settings, lengths[str(cell.batch_size)], runs) for cell in cells(settings)]
    scored = [row for row in rows if row["best_tried"] is not None]
    best = min(scored, key=lambda row: row["best_tried"]["bits_per_byte"], default=None)
    return {
        "format": 1,
        "settings": to_dict(settings),
        "cells": rows,
        "best": best and {key: best[key] for key in ("batch_size", "weight_decay", "best", "best_tried", "edge")},
        "notes": _notes(settings, rows),
    }


def _cell(cell: Cell, settings: SweepSettings, steps: int, runs: Sequence[Run]) -> dict[str, Any]:
    mine = runs_of(cell, runs)
    rates = [_rate(rate, [run for run in mine if run["rate"] == rate]) for rate in sorted({r["rate"] for r in mine})]
    whole = [row for row in rates if not row["diverged"]]
    tried = min(whole, key=lambda row: row["mean"], default=None)
    lost = {row["rate"] for row in rates if row["diverged"]}
    scores = [Score(run["rate"], run["seed"], run["bits_per_byte"]) for run in mine if run["rate"] not in lost]
    best = best_rate(scores, settings.ratio * LOOSE)
    found = edge(cell, runs)
    return {
        "batch_size": cell.batch_size,
        "weight_decay": cell.weight_decay,
        "steps": steps,
        "edge": {"stable": found.stable, "diverged": found.diverged, "factor": found.factor},
        "best": best and {key: value for key, value in to_dict(best).items() if key != "kind"},
        "best_tried": tried and {"rate": tried["rate"], "bits_per_byte": tried["mean"]},
        "rates": rates,
    }


def _rate(rate: float, runs: Sequence[Run]) -> dict[str, Any]:
    ordered = sorted(runs, key=lambda run: run["seed"])
    bits = [run["bits_per_byte"] for run in ordered if run["bits_per_byte"] is not None]
    return {
        "rate": rate,
        "bits_per_byte": [run["bits_per_byte"] for run in ordered],
        "mean": statistics.fmean(bits) if bits else None,
        "deviation": statistics.stdev(bits) if len(bits) > 1 else None,
        "diverged": sum(run["diverged"] for run in ordered),
        "steps": [run["steps"] for run in ordered],
        "seconds": round(sum(run["seconds"] for run in ordered), 3),
        "faults": sorted({run["fault"] for run in ordered if run.get("fault")}),
    }


def _notes(settings: SweepSettings, rows: Sequence[dict[str, Any]]) -> list[str]:
    notes = [
        f"Optimizer {settings.optimizer}, {plural(settings.seeds, 'seed')} at each rate; all runs of a batch size have "
        "the same steps, and all batch sizes the same tokens.",
        "A run has diverged when its loss is not finite or not below that before training; it is then stopped. A rate "
        "is stable when no seed diverged.",
        "The best rate is the vertex of a parabola in the logarithm of the rate, with a 95 % interval over seeds, "
        f"through the rates within a factor of {settings.ratio:g} of the best one tried.",
    ]
    for row in rows:
        name = f"Batch {row['batch_size']}, weight decay {row['weight_decay']:g}: "
        found = row["edge"]
        if found["stable"] is None:
            notes.append(name + "every rate diverged; begin lower (low=).")
        elif found["diverged"] is None:
            notes.append(name + f"no rate up to {found['stable']:g} diverged, so the edge lies above (highest=).")
        if lower := [r["rate"] for r in row["rates"] if r["diverged"] and r["rate"] < (found["stable"] or 0)]:
            shown = ", ".join(f"{rate:g}" for rate in lower)
            notes.append(name + f"lower rates diverged too ({shown}), so the edge is not sharp.")
        if row["best"] is None and row["best_tried"] is not None:
            notes.append(name + "no parabola has its vertex among the rates near the best one, which is therefore "
                         "given as it was tried; try more rates around it.")  # fmt: skip
    notes.append("A best rate is that of this model, text and length of training: longer runs like lower ones.")
    return notes
