"""The law of fine-grained experts: the paper's own table, synthetic constants against a grid, and the arithmetic."""

import math

import pytest

from groundup.accounting.compute_optimal import optimum
from groundup.accounting.moe_optimal import (
    KRAJEWSKI,
    KRAJEWSKI_DENSE,
    FineGrained,
    flops_per_token,
    moe_optimum,
    total_parameters,
)
from groundup.accounting.search import root

PUBLISHED = [
    # FLOPs, active parameters, tokens, granularity, loss: the table of compute-optimal models in arXiv:2402.07871
    (2.95e18, 0.1e9, 4.37e9, 8, 3.133),
    (1.93e20, 1e9, 28.94e9, 16, 2.491),
    (1.41e21, 3e9, 72.90e9, 16, 2.245),
    (6.46e21, 7e9, 137.60e9, 32, 2.076),
    (4.16e23, 70e9, 941.07e9, 32, 1.694),
    (5.69e24, 300e9, 2.96e12, 64, 1.503),
    (4.97e25, 1e12, 7.94e12, 64, 1.367),
]


@pytest.mark.parametrize(("flops", "active", "tokens", "granularity", "loss"), PUBLISHED)
def test_the_published_optima(flops, active, tokens, granularity, loss):
    """Sizes are round numbers there, and constants are printed with two or three digits, hence 3 %."""
    assert flops_per_token(active, 64, granularity) * tokens == pytest.approx(flops, rel=0.005)
    best = moe_optimum(flops)
    assert best.granularity == granularity
    assert best.active == pytest.approx(active, rel=0.03)
    assert best.tokens == pytest.approx(tokens, rel=0.03)
    assert best.loss == pytest.approx(loss, abs=0.025)


def test_a_mixture_is_worth_twenty_times_the_compute_of_a_dense_model():
    """As the paper says of 1e20 FLOPs; and more at larger budgets."""
    ratios = []
    for flops in (1e20, 1e25):
        best = moe_optimum(flops)
        same = root(lambda c, loss=best.loss: loss - optimum(c, KRAJEWSKI_DENSE).loss, flops, 1e6 * flops)
        ratios.append(same / flops)
    assert ratios[0] == pytest.approx(20, rel=0.1)
    assert ratios[1] > 1.4 * ratios[0]


SYNTHETIC = FineGrained(1.0, 400.0, 0.35, 100.0, 1.5, 2000.0, 0.37, expansion=8, fitted_on="invented")


@pytest.mark.parametrize("flops", [1e17, 1e21])
def test_a_fine_grid_finds_no_lower_loss(flops):
    """Invented constants with another expansion rate: every size and granularity."""
    best = moe_optimum(flops, range(1, 33), SYNTHETIC)
    found = []
    for granularity in range(1, 33):
        for step in range(-400, 401):
            active = best.active * 1.01**step
            tokens = flops / flops_per_token(active, 8, granularity)
            found.append((SYNTHETIC.loss(total_parameters(active, 8), tokens, granularity), granularity))
    loss, granularity = min(found)
    assert best.loss <= loss + 1e-12
    assert best.loss == pytest.approx(loss, rel=1e-4)
    assert best.granularity == granularity
    assert 1 < granularity < 32  # the router's cost ends it, not the range


def test_costs_by_hand():
    """d = 128, two blocks: 12 * 128^2 * 2 active; with 4 x 2 experts the router adds 14 * 8 * 128 a block."""
    active = 12 * 128**2 * 2
    assert flops_per_token(active, 4, 2) == pytest.approx(6 * active + 14 * 8 * 128 * 2)
    assert total_parameters(active, 4) == (4 + 8 * 4) * 128**2 * 2
    assert total_parameters(active, 1) == active


def test_loss_by_hand():
    law = FineGrained(1.0, 3.0, 1.0, 4.0, 1.0, 10.0, 1.0, expansion=1, fitted_on="nothing")
    assert law.loss(10.0, 5.0, 4.0) == pytest.approx(1 + (4 / 4 + 3) / 10 + 10 / 5)


def test_finer_experts_cost_more_and_teach_more():
    coarse, fine = (moe_optimum(1e20, [granularity]) for granularity in (1, 16))
    assert fine.loss < coarse.loss
    assert fine.parameters == pytest.approx(total_parameters(fine.active, KRAJEWSKI.expansion))
    assert fine.tokens_per_parameter == fine.tokens / fine.active


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: moe_optimum(math.nan), "flops=nan"),
        (lambda: moe_optimum(1e20, []), "granularities="),
        (lambda: moe_optimum(1e20, [0]), "granularities="),
        (lambda: KRAJEWSKI.loss(1e9, 0.0, 1), "tokens=0.0"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
