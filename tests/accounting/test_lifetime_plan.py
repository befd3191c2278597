"""A plan for a model that is served: the same loss for less, in the devices' seconds."""

import pytest

from groundup.accounting import training_flops_per_token
from groundup.accounting.cluster_plan import Budget, advice, plan_cluster
from groundup.accounting.compute_optimal import EPOCH
from groundup.accounting.devices import cluster
from groundup.accounting.lifetime_plan import plan_lifetime, serving_flops

H100 = cluster("h100")


def test_a_smaller_model_trained_longer_has_the_same_loss_and_saves_what_it_says():
    budget = Budget(flops=1e18, mfu=0.5)
    plan = plan_lifetime(budget, H100, 1e11, serving_mfu=0.1)
    assert plan.usual == plan_cluster(budget, H100)[0]
    assert plan.chosen.parameters < plan.usual.parameters
    assert plan.chosen.tokens > plan.usual.tokens
    assert plan.chosen.loss == pytest.approx(plan.usual.loss)
    seconds = [
        (p.flops / 0.5 + 1e11 * training_flops_per_token(p.model, p.model.context_length) / 3 / 0.1) / 989.5e12
        for p in (plan.chosen, plan.usual)
    ]
    assert (plan.chosen_device_seconds, plan.usual_device_seconds) == pytest.approx(tuple(seconds))
    assert plan.saved == pytest.approx(1 - seconds[0] / seconds[1])
    assert plan.saved > 0.2
    assert plan.chosen_flops == pytest.approx(plan.chosen.flops + serving_flops(plan.chosen.model, 1e11))


def test_poor_serving_is_as_more_serving():
    few, dear = (plan_lifetime(Budget(flops=1e18), H100, 1e10, mfu).chosen for mfu in (0.4, 0.04))
    assert dear.parameters < few.parameters


def test_too_few_served_tokens_change_nothing():
    plan = plan_lifetime(Budget(flops=1e18), H100, 1e3)
    assert plan.chosen is plan.usual
    assert plan.saved == 0


def test_both_models_have_one_vocabulary_and_one_context():
    plan = plan_lifetime(Budget(flops=1.5e21), cluster("h100x64"), 1e12)  # shapes change their vocabulary at 3 B
    assert plan.usual.parameters > 3e9 > plan.chosen.parameters
    assert plan.chosen.model.vocab_size == plan.usual.model.vocab_size
    assert plan.chosen.model.context_length == plan.usual.model.context_length


def test_models_that_do_not_fit_are_passed_over():
    assert plan_lifetime(Budget(flops=1.6e20), cluster("t4"), 1e9).chosen.parameters > 0


@pytest.mark.slow
def test_too_little_text_makes_the_served_model_larger_than_with_enough():
    enough = plan_lifetime(Budget(flops=1e19), H100, 1e12)
    little = plan_lifetime(Budget(flops=1e19, unique_tokens=1e9), H100, 1e12)
    share = [p.chosen.parameters / p.usual.parameters for p in (enough, little)]
    assert share[0] < share[1] < 1
    assert little.chosen.loss == pytest.approx(little.usual.loss)
    assert little.chosen.epochs is not None and little.chosen.epochs > 1
    again = EPOCH.repeated_loss(little.chosen.parameters, little.chosen.tokens, 1e9)
    assert little.chosen.loss == pytest.approx(again)


def test_advice_changes_when_text_runs_out():
    regime, free, lines = advice(Budget(flops=1e19), H100)
    assert (regime, len(lines)) == ("compute", 1)
    assert round(free.tokens_per_parameter) == 24
    assert f"{free.tokens_per_parameter:.1f} tokens per parameter" in lines[0]
    assert advice(Budget(flops=1e19, unique_tokens=free.tokens), H100)[0] == "compute"
    regime, _, lines = advice(Budget(flops=1e19, unique_tokens=free.tokens / 10), H100)
    assert regime == "data"
    assert "data runs out before compute" in lines[1]
    given = advice(Budget(parameters=1e9, tokens=20e9), H100)[1]
    assert 6 * given.parameters * given.tokens == pytest.approx(1.2e20)


@pytest.mark.parametrize(("tokens", "mfu", "message"), [(0.0, None, "served_tokens=0"), (1e9, 1.5, "serving_mfu=1.5")])
def test_what_is_refused(tokens, mfu, message):
    with pytest.raises(ValueError, match=message):
        plan_lifetime(Budget(flops=1e18), H100, tokens, mfu)
