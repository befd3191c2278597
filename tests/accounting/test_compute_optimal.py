"""Chinchilla's law: published optima, the closed form against a search, and repeated text."""

import math

import pytest

from groundup.accounting.compute_optimal import EPOCH, HOFFMANN, REPEAT_WORTH, Optimum, optimum, worth


def test_rule_of_thumb_comes_out_of_the_fit():
    """Besiroglu et al. find about 20 tokens per parameter, slowly falling; the rounded constants as printed do not."""
    ratios = [optimum(flops).tokens_per_parameter for flops in (1e19, 5.8e23)]
    assert [round(ratio) for ratio in ratios] == [24, 18]
    printed = [optimum(flops, HOFFMANN).tokens_per_parameter for flops in (1e19, 5.8e23)]
    assert [round(ratio) for ratio in printed] == [32, 93]


def test_chinchilla_itself():
    """5.76e23 FLOPs: Hoffmann et al. trained 70 B parameters on 1.4 T tokens."""
    best = optimum(5.76e23)
    assert best.parameters == pytest.approx(70e9, rel=0.1)
    assert best.tokens == pytest.approx(1.4e12, rel=0.1)


@pytest.mark.parametrize("law", [EPOCH, HOFFMANN])
@pytest.mark.parametrize("flops", [1e15, 1e18, 1e21, 1e25])
def test_no_neighbour_on_the_budget_is_better(law, flops):
    best = optimum(flops, law)
    assert 6 * best.parameters * best.tokens == pytest.approx(flops)
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        n = factor * best.parameters
        assert law.loss(n, flops / 6 / n) > best.loss


def test_size_for_tokens_is_the_optimum_read_backwards():
    best = optimum(1e21)
    assert EPOCH.parameters_for_tokens(best.tokens) == pytest.approx(best.parameters)


def test_repeats_are_worth_less_and_less():
    """Four passes are nearly as good as fresh text (Muennighoff et al. 2023), forty are not."""
    assert worth(1.0, 3.0, REPEAT_WORTH) == pytest.approx(1 + REPEAT_WORTH * (1 - math.exp(-3 / REPEAT_WORTH)))
    assert worth(1.0, 3.0, REPEAT_WORTH) > 0.9 * 4
    assert worth(1.0, 39.0, REPEAT_WORTH) < 0.4 * 40


def test_text_read_once_by_a_model_that_is_not_too_large_for_it_is_no_special_case():
    assert EPOCH.parameters_for_tokens(1e9) > 3e7
    assert EPOCH.repeated_loss(3e7, 1e9, 1e9) == EPOCH.loss(3e7, 1e9)
    too_large = EPOCH.repeated_loss(1e8, 1e9, 1e9)
    assert EPOCH.loss(1e8, 1e9) < too_large < EPOCH.loss(3e7, 1e9)


def test_with_enough_text_the_constraint_changes_nothing():
    free, bound = optimum(1e20), optimum(1e20, unique_tokens=1e11)
    assert (bound.parameters, bound.tokens, bound.loss) == (free.parameters, free.tokens, free.loss)
    assert bound.epochs == pytest.approx(free.tokens / 1e11)
    assert free.epochs is None


def test_with_too_little_text_it_is_read_again_and_the_loss_is_worse():
    free = optimum(1e20)
    bound = [optimum(1e20, unique_tokens=free.tokens / share) for share in (2, 10, 100)]
    assert all(best.epochs is not None and best.epochs > 1 for best in bound)
    assert free.loss < bound[0].loss < bound[1].loss < bound[2].loss
    assert [6 * b.parameters * b.tokens for b in bound] == pytest.approx([1e20] * 3)
    # Parameters in excess lose their worth sooner than repeated tokens, so the models get smaller, not larger.
    assert bound[1].parameters < free.parameters


def test_the_best_on_repeated_text_has_no_better_neighbour():
    unique = optimum(1e20).tokens / 10
    best = optimum(1e20, unique_tokens=unique)
    assert isinstance(best, Optimum)
    for factor in (0.5, 0.9, 1.1, 2.0):
        n = factor * best.parameters
        assert EPOCH.repeated_loss(n, 1e20 / 6 / n, unique) > best.loss


@pytest.mark.parametrize("flops", [0, -1, math.inf, math.nan])
def test_budgets_that_are_none(flops):
    with pytest.raises(ValueError, match="expected a positive number"):
        optimum(flops)
