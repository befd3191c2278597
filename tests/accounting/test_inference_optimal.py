"""Training and serving from one purse: by hand, against a fine grid, and as served tokens grow."""

import math

import pytest

from groundup.accounting.compute_optimal import EPOCH, HOFFMANN, Chinchilla, optimum
from groundup.accounting.inference_optimal import Serving, best_for, cheapest, price_of_flop

HAND = Chinchilla(0.0, 1.0, 1.0, 1.0, 1.0, fitted_on="nothing")
SYNTHETIC = Chinchilla(1.5, 300.0, 0.4, 700.0, 0.3, fitted_on="nothing")


def test_by_hand():
    """L = 1/N + 1/D = 1, 9 served tokens: 6 N D + 18 N is 54 at N = 1.5, D = 3; without serving N = D = 2."""
    best = cheapest(1.0, Serving(9.0), HAND)
    assert (best.parameters, best.tokens) == pytest.approx((1.5, 3.0))
    assert (best.training_cost, best.serving_cost, best.cost) == pytest.approx((27.0, 27.0, 54.0))
    usual = cheapest(1.0, Serving(0.0), HAND)
    assert (usual.parameters, usual.tokens) == pytest.approx((2.0, 2.0))
    assert 6 * 2 * 2 + 2 * 2 * 9 == 60  # what the usual one costs over its life


def test_the_published_example():
    """Sardana et al.: the quality of a 30 B and 1e13 served tokens: 13.6 B on 2.84 x the tokens, 28 % less."""
    law = Chinchilla(1.69, 406.4, 0.336, 410.7, 0.283, fitted_on="Hoffmann et al. 2022, exponents with three digits")
    tokens = (30e9 / law.parameters_for_tokens(1.0)) ** (law.size_exponent / law.data_exponent)
    serving = Serving(1e13)
    best = cheapest(law.loss(30e9, tokens), serving, law)
    assert best.parameters == pytest.approx(13.6e9, rel=0.01)
    assert best.tokens / tokens == pytest.approx(2.84, rel=0.01)
    usual = serving.training_cost(30e9, tokens) + serving.serving_cost(30e9)
    assert 1 - best.cost / usual == pytest.approx(0.28, abs=0.01)


@pytest.mark.parametrize("law", [SYNTHETIC, EPOCH])
@pytest.mark.parametrize("serving", [Serving(1e9), Serving(1e11, 2.5, 40.0), Serving(1e14)])
def test_a_fine_grid_finds_nothing_cheaper(law, serving):
    loss = law.floor + 0.8
    best = cheapest(loss, serving, law)
    assert law.loss(best.parameters, best.tokens) == pytest.approx(loss)
    smallest = (law.size_scale / (loss - law.floor)) ** (1 / law.size_exponent)
    found = []
    for step in range(1, 40_001):
        n = smallest * (1 + 1e-4) ** step
        d = (law.data_scale / (loss - law.floor - law.size_scale / n**law.size_exponent)) ** (1 / law.data_exponent)
        found.append((6 * serving.training_price * n * d + 2 * serving.serving_price * n * serving.tokens, n))
    cost, parameters = min(found)
    assert best.cost <= cost * (1 + 1e-12)
    assert best.cost == pytest.approx(cost, rel=1e-6)
    assert best.parameters == pytest.approx(parameters, rel=2e-3)


@pytest.mark.parametrize("law", [SYNTHETIC, HOFFMANN])
@pytest.mark.parametrize("serving", [Serving(0.0), Serving(1e10), Serving(3e12, 1.0, 8.0)])
def test_a_fine_grid_on_the_budget_finds_no_lower_loss(law, serving):
    cost = 1e22
    best = best_for(cost, serving, law)
    assert best.cost == pytest.approx(cost)
    grid = [best.parameters * 1.0005**step for step in range(-8000, 8001)]
    paid = [
        (n, (cost / serving.training_price - 2 * serving.serving_price * n * serving.tokens) / (6 * n)) for n in grid
    ]
    loss, parameters = min((law.loss(n, d), n) for n, d in paid if d > 0)
    assert best.loss <= loss
    assert best.parameters == pytest.approx(parameters, rel=1e-3)


def test_without_serving_it_is_chinchillas_optimum():
    for flops in (1e18, 1e24):
        usual = optimum(flops)
        for best in (cheapest(usual.loss, Serving(0.0)), best_for(flops, Serving(0.0))):
            assert (best.parameters, best.tokens) == pytest.approx((usual.parameters, usual.tokens), rel=1e-6)
            assert best.cost == pytest.approx(flops)


def test_both_questions_have_one_answer():
    best = cheapest(2.2, Serving(1e12, 1.0, 5.0))
    again = best_for(best.cost, Serving(1e12, 1.0, 5.0))
    assert (again.parameters, again.tokens, again.loss) == pytest.approx((best.parameters, best.tokens, 2.2), rel=1e-6)


def test_the_more_is_served_the_smaller_and_longer():
    found = [cheapest(2.2, Serving(tokens)) for tokens in (0.0, 1e10, 1e12, 1e14, 1e16)]
    sizes, ratios = [b.parameters for b in found], [b.tokens_per_parameter for b in found]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 5
    assert ratios == sorted(ratios)
    least = (EPOCH.size_scale / (2.2 - EPOCH.floor)) ** (1 / EPOCH.size_exponent)
    assert sizes[-1] > least  # no smaller model reaches the loss on any text


def test_dear_serving_is_as_more_serving_and_money_is_no_other_unit():
    assert cheapest(2.2, Serving(1e11, 1.0, 8.0)).parameters == pytest.approx(cheapest(2.2, Serving(8e11)).parameters)
    train, serve = (price_of_flop(2.0, 1e15, mfu) for mfu in (0.4, 0.05))
    money = cheapest(2.2, Serving(1e11, train, serve))
    assert money.parameters == pytest.approx(cheapest(2.2, Serving(8e11)).parameters)
    hours = 6 * money.parameters * money.tokens / (1e15 * 0.4) / 3600
    assert money.training_cost == pytest.approx(2.0 * hours)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cheapest(1.8, Serving(1.0)), "loss=1.8; this law's lie above 1.8172"),
        (lambda: cheapest(math.inf, Serving(1.0)), "loss=inf"),
        (lambda: best_for(0.0, Serving(1.0)), "cost=0.0; expected a positive number"),
        (lambda: Serving(-1.0), "tokens=-1.0"),
        (lambda: Serving(1.0, 0.0), "training_price=0.0"),
        (lambda: price_of_flop(2.0, 1e15, 1.5), "mfu=1.5; expected a share"),
        (lambda: price_of_flop(0.0, 1e15, 0.5), "price_per_hour=0.0"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
