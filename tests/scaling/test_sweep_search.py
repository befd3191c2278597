"""Which rates come next: a synthetic edge is found to the asked factor, however often the search is stopped."""

from dataclasses import replace

import pytest

from groundup.scaling.sweep_search import Cell, Edge, cells, due, edge, most_runs, next_rate
from groundup.scaling.sweep_settings import SweepSettings

SETTINGS = SweepSettings(low=0.001, high=0.016, ratio=2.0, highest=1.0, edge_factor=1.25, seeds=2)


def run_of(job, diverged):
    return {"batch_size": job.cell.batch_size, "weight_decay": job.cell.weight_decay, "rate": job.rate,
            "seed": job.seed, "diverged": diverged}  # fmt: skip


def searched(settings, truth, at_once=1000):
    """All runs of a sweep where seed s diverges above `truth(cell, s)`; `at_once` of those due are made at a time."""
    runs = []
    while jobs := due(settings, runs):
        runs += [run_of(job, job.rate > truth(job.cell, job.seed)) for job in jobs[:at_once]]
    return runs


@pytest.mark.parametrize("truth", [0.0011, 0.0039, 0.0041, 0.0159, 0.3, 0.511])
def test_the_edge_is_found_to_the_asked_factor(truth):
    runs = searched(SETTINGS, lambda cell, seed: truth)
    found = edge(cells(SETTINGS)[0], runs)
    assert found.stable is not None and found.diverged is not None
    assert found.stable <= truth < found.diverged
    assert found.diverged / found.stable == found.factor
    assert found.diverged / found.stable <= 1.25
    assert len({(run["rate"], run["seed"]) for run in runs}) == len(runs), "no run is made twice"
    assert {run["rate"] for run in runs} >= set(SETTINGS.grid)


def test_one_seed_that_diverges_is_enough():
    runs = searched(SETTINGS, lambda cell, seed: 0.01 if seed else 0.1)
    found = edge(cells(SETTINGS)[0], runs)
    assert found.stable is not None and found.diverged is not None
    assert found.stable <= 0.01 < found.diverged


def test_a_search_that_is_stopped_after_every_run_makes_the_same_runs():
    def truth(cell, seed):
        return 0.03 if seed else 0.05

    whole, stopped = searched(SETTINGS, truth), searched(SETTINGS, truth, at_once=1)
    assert sorted(map(str, stopped)) == sorted(map(str, whole))


def test_every_cell_has_its_own_edge():
    settings = replace(SETTINGS, batch_sizes=(4, 8), weight_decays=(0.0, 0.1))
    runs = searched(settings, lambda cell, seed: 0.002 * cell.batch_size * (1 + cell.weight_decay))
    assert len(cells(settings)) == 4
    for cell in cells(settings):
        found = edge(cell, runs)
        assert found.stable is not None and found.diverged is not None
        assert found.stable <= 0.002 * cell.batch_size * (1 + cell.weight_decay) < found.diverged


def test_it_ends_where_nothing_and_where_everything_diverges():
    never = searched(SETTINGS, lambda cell, seed: 1e9)
    assert edge(Cell(8, 0.1), never) == Edge(0.512, None)  # the next would be above `highest`
    always = searched(SETTINGS, lambda cell, seed: 0.0)
    assert edge(Cell(8, 0.1), always) == Edge(None, 0.001)
    assert len(always) == 2 * len(SETTINGS.grid)


def test_next_rates_by_hand():
    """The geometric middle of 0.01 and 0.04 is 0.02; 0.02 to 0.0249 is narrow enough."""
    assert next_rate(SETTINGS, Edge(0.01, 0.04)) == 0.02
    assert next_rate(SETTINGS, Edge(0.02, 0.0249)) is None
    assert next_rate(SETTINGS, Edge(0.3, None)) == 0.6


@pytest.mark.parametrize("factor", [1.05, 1.25, 1.9])
def test_the_number_of_runs_is_known_before(factor):
    """For an edge one rate above the grid: each halving takes the root of the gap's factor."""
    settings = replace(SETTINGS, edge_factor=factor)
    assert len(searched(settings, lambda cell, seed: 0.02)) == most_runs(settings)
