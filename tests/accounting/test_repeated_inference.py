"""Serving and too little text together: against a fine grid, and at the ends where one of the two does not matter."""

import math
from bisect import bisect_left

import pytest

from groundup.accounting.compute_optimal import EPOCH, Chinchilla, optimum
from groundup.accounting.inference_optimal import Serving, best_for, cheapest
from groundup.accounting.repeated_inference import best_repeated_for, cheapest_repeated, tokens_for_loss

SYNTHETIC = Chinchilla(1.5, 300.0, 0.4, 700.0, 0.3, fitted_on="nothing")


@pytest.mark.parametrize(("law", "gap", "unique"), [(EPOCH, 0.8, 3e9), (SYNTHETIC, 0.7, 1e10)])
@pytest.mark.parametrize("served", [0.0, 1e12])
def test_a_fine_grid_of_sizes_and_passes_finds_nothing_cheaper(law, gap, unique, served):
    loss, serving = law.floor + gap, Serving(served)
    best = cheapest_repeated(loss, serving, unique, law)
    assert law.repeated_loss(best.parameters, best.tokens, unique) == pytest.approx(loss)
    assert best.epochs == pytest.approx(best.tokens / unique)
    assert best.epochs is not None and best.epochs > 1
    found = []
    for i in range(-150, 151):
        n = best.parameters * 1.01**i
        tokens = [best.tokens * 1.001**j for j in range(-1500, 1501)]
        enough = bisect_left(tokens, -loss, key=lambda d, n=n: -law.repeated_loss(n, d, unique))
        if enough < len(tokens):
            found.append(serving.training_cost(n, tokens[enough]) + serving.serving_cost(n))
    assert best.cost <= min(found) * (1 + 1e-9)
    assert best.cost == pytest.approx(min(found), rel=2e-3)  # the grid's steps: 0.1 % of the tokens


@pytest.mark.parametrize("served", [0.0, 1e11])
def test_a_fine_grid_on_the_budget_finds_no_lower_loss(served):
    serving, unique = Serving(served), 1e9
    best = best_repeated_for(1e21, serving, unique)
    assert best.cost == pytest.approx(1e21)
    sizes = [best.parameters * 1.001**step for step in range(-4000, 4001)]
    paid = [(n, serving.tokens_left(n, 1e21)) for n in sizes]
    assert best.loss <= min(EPOCH.repeated_loss(n, d, unique) for n, d in paid if d > 0) + 1e-12


def test_with_enough_text_only_serving_matters():
    serving = Serving(1e12)
    free, bound = cheapest(2.5, serving), cheapest_repeated(2.5, serving, 1e14)
    assert (bound.parameters, bound.tokens) == pytest.approx((free.parameters, free.tokens), rel=1e-5)
    free, bound = best_for(1e21, serving), best_repeated_for(1e21, serving, 1e14)
    assert (bound.parameters, bound.loss) == pytest.approx((free.parameters, free.loss), rel=1e-5)


def test_without_serving_only_text_matters():
    bound = best_repeated_for(1e20, Serving(0.0), 1e9)
    searched = optimum(1e20, unique_tokens=1e9)
    assert bound.loss <= searched.loss
    assert bound.parameters == pytest.approx(searched.parameters, rel=0.01)


def test_serving_wants_it_smaller_and_little_text_larger_again():
    plenty, little = cheapest(2.6, Serving(1e12)), cheapest_repeated(2.6, Serving(1e12), 3e9)
    unserved = cheapest_repeated(2.6, Serving(0.0), 3e9)
    assert plenty.parameters < little.parameters < unserved.parameters
    assert little.cost > plenty.cost


def test_fewest_tokens_for_a_loss():
    """Where text suffices, by hand: 2085.43 / D^0.3658 is what the floor and the size leave of the loss."""
    n = 2e8
    d = (2085.43 / (2.7 - 1.8172 - 482.01 / n**0.3478)) ** (1 / 0.3658)
    assert tokens_for_loss(2.7, n, None) == pytest.approx(d)
    assert tokens_for_loss(2.7, n, 1e13) == pytest.approx(d)
    again = tokens_for_loss(2.7, n, d / 3)
    assert again > d
    assert EPOCH.repeated_loss(n, again, d / 3) == pytest.approx(2.7)
    assert tokens_for_loss(1.9, n, None) == math.inf
    assert tokens_for_loss(2.7, n, d / 1000) == math.inf


def test_a_loss_that_no_passes_reach():
    with pytest.raises(ValueError, match="no model reaches a loss of 2 on 1e\\+08 unique tokens, however often"):
        cheapest_repeated(2.0, Serving(1e9), 1e8)
    with pytest.raises(ValueError, match="cost=-1"):
        best_repeated_for(-1.0, Serving(1e9), 1e8)
