"""Plans for devices that are not here: sums that must agree, wishes that are kept, and what does not fit."""

import pytest
import torch

from groundup.accounting import count_parameters, training_flops_per_token, training_memory
from groundup.accounting.cluster_plan import Budget, batch_and_rate, plan_cluster, shape
from groundup.accounting.compute_optimal import EPOCH, optimum
from groundup.accounting.devices import cluster
from groundup.accounting.fitting import MEMORY_SHARE


def test_a_budget_of_flops_is_spent_at_the_optimum():
    best, *others = plan_cluster(Budget(flops=1e18), cluster("h200"))
    per_token = training_flops_per_token(best.model, best.model.context_length)
    assert best.tokens * per_token == pytest.approx(1e18)
    assert best.flops == pytest.approx(1e18)
    assert best.parameters == pytest.approx(optimum(1e18).parameters, rel=0.15)
    assert best.loss == EPOCH.loss(best.parameters, best.tokens)
    assert len(others) == 2
    assert all(other.loss > best.loss for other in others)
    assert best.seconds == pytest.approx(1e18 / (989.5e12 * 0.4))
    assert best.epochs is None


def test_a_budget_of_time_is_flops_by_the_assumed_share_of_the_peak():
    plan = plan_cluster(Budget(seconds=5400, mfu=0.5, price_per_hour=2.0), cluster("h100x8"))[0]
    assert plan.seconds == pytest.approx(5400)
    assert plan.flops == pytest.approx(8 * 989.5e12 * 0.5 * 5400)
    assert plan.kilowatt_hours == pytest.approx(8 * 1.5 * 0.7)
    assert plan.price == pytest.approx(8 * 1.5 * 2.0)
    assert plan.batch_tokens % (8 * plan.model.context_length) == 0
    assert plan.micro_batch * plan.accumulation * 8 * plan.model.context_length >= plan.batch_tokens


def test_a_given_size_and_number_of_tokens_are_kept():
    """Chinchilla's smaller sister: 1.4 B parameters on 28 B tokens."""
    (plan,) = plan_cluster(Budget(parameters=1.4e9, tokens=28e9), cluster("a100x8"))
    assert plan.parameters == pytest.approx(1.4e9, rel=0.1)
    assert plan.tokens == 28e9
    assert plan.steps == pytest.approx(28e9 / plan.batch_tokens, abs=1)
    assert plan.loss_interval[0] <= plan.loss <= plan.loss_interval[1]


def test_little_text_makes_for_smaller_models_and_a_worse_loss():
    free = plan_cluster(Budget(flops=1e19), cluster("h100"))[0]
    bound = plan_cluster(Budget(flops=1e19, unique_tokens=free.tokens / 20), cluster("h100"))[0]
    assert bound.loss > free.loss
    assert bound.epochs == pytest.approx(bound.tokens / (free.tokens / 20))


def test_memory_decides_over_shards_rows_and_recomputation():
    one = plan_cluster(Budget(parameters=1e9, tokens=1e9, context_length=1024), cluster("h100"))[0]
    assert (one.sharding, one.recompute) == ("none", False)
    large = plan_cluster(Budget(parameters=8e9, tokens=1e9), cluster("h100x8"))[0]
    assert large.sharding == "full"
    assert large.peak_bytes <= MEMORY_SHARE * 80e9
    with pytest.raises(ValueError, match=r"do not fit into H100 SXM.*at least \d+ of them, sharded"):
        plan_cluster(Budget(parameters=70e9, tokens=1e9), cluster("h100"))


def test_how_many_it_says_would_do_do():
    with pytest.raises(ValueError, match="at least") as caught:
        plan_cluster(Budget(parameters=13e9, tokens=1e9), cluster("a100"))
    count = int(str(caught.value).partition("at least ")[2].split()[0])
    assert plan_cluster(Budget(parameters=13e9, tokens=1e9), cluster(f"a100x{count}"))[0].sharding == "full"


def test_bytes_of_a_device_are_those_of_the_memory_ledger():
    plan = plan_cluster(Budget(flops=1e16), cluster("a100"))[0]
    ledger = training_memory(plan.model, plan.micro_batch, plan.model.context_length, torch.bfloat16)
    assert (plan.sharding, plan.recompute) == ("none", False)
    assert plan.peak_bytes == pytest.approx(ledger.peak, rel=1e-3)


def test_devices_without_bf16_are_planned_in_fp16():
    assert plan_cluster(Budget(flops=1e16), cluster("v100"))[0].precision == "fp16"


@pytest.mark.parametrize("parameters", [1e7, 1e8, 1e9, 8e9, 7e10])
def test_shapes_have_about_the_size_that_was_asked_for(parameters):
    model = shape(parameters, Budget(flops=1.0))
    assert count_parameters(model).total == pytest.approx(parameters, rel=0.2)
    assert 60 <= model.d_model / model.num_layers <= 140 or model.num_layers == 2


def test_batch_and_rate_by_hand():
    """C = 1e18: 0.2920 * 1e18^0.3271 = 225,000 tokens or so, which are 110 rows of 2,048."""
    tokens, rate = batch_and_rate(1e18, 2048)
    assert tokens == 110 * 2048
    assert rate == pytest.approx(0.3118 * 10 ** (-18 / 8))
    assert batch_and_rate(1e15, 2048, devices=64)[0] == 64 * 2048


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({}, "give one of a time, FLOPs, or parameters together with tokens"),
        ({"flops": 1e18, "seconds": 1.0}, "give one of"),
        ({"parameters": 1e9}, "together with tokens"),
        ({"flops": 1e18, "tokens": 1e9}, "together with tokens"),
        ({"flops": -1.0}, "flops=-1.0; expected a positive number"),
        ({"flops": 1e18, "unique_tokens": 0.0}, "unique_tokens=0.0"),
        ({"flops": 1e18, "mfu": 1.5}, "mfu=1.5; expected a share of the peak"),
        ({"flops": 1e18, "context_length": 0}, "context_length=0; expected at least 1"),
    ],
)
def test_budgets_that_are_none(wishes, message):
    with pytest.raises(ValueError, match=message):
        Budget(**wishes)
