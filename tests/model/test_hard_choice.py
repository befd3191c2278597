"""Hard choices by hand: what is drawn, how probable it was, and which gradient passes."""

from itertools import permutations

import pytest
import torch

from groundup.model import Balance, MoE, MoEConfig, ReinforceRouter, StraightThroughRouter
from groundup.model.hard_choice import entropy, gumbel_noise, log_prob, sample, straight_through_gates

from .test_moe import layer, layout
from .test_router import LOGITS, route, router

HARD = [StraightThroughRouter(), StraightThroughRouter(0.5, gumbel=True), ReinforceRouter()]
ALL = torch.ones(1, dtype=torch.bool)


@pytest.mark.parametrize("config", HARD)
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_gates_are_an_equal_share_exactly_and_evaluation_takes_the_best(config, top_k):
    made = router(config, LOGITS, top_k)
    for training in (True, False):
        assert made.train(training)(torch.eye(1), ALL).gates.tolist() == [1 / top_k] * top_k
    assert made(torch.eye(1), ALL).experts.tolist() == list(range(top_k))
    assert made(torch.eye(1), ALL).log_probs is None


@pytest.mark.parametrize("config", HARD)
def test_logits_are_in_float32_under_bf16(config):
    made = router(config, torch.randn(16, 8), 2)
    routing = made(torch.randn(40, 16).bfloat16(), torch.ones(40, dtype=torch.bool))
    assert routing.gates.dtype == routing.logits.dtype == torch.float32


def test_training_samples_and_the_straight_one_without_noise_does_not():
    x, valid = torch.zeros(500, 1), torch.ones(500, dtype=torch.bool)
    for config, kinds in zip(HARD, (1, 4, 4), strict=True):
        made = router(config, torch.zeros(1, 4), 1).train()
        assert len(made(x, valid).experts.unique()) == kinds


def test_straight_through_gradient_by_hand():
    """The gate of expert 0 has the gradient of p_0: p_0 (1 - p_0) for its logit, -p_0 p_j for the others'."""
    logits = LOGITS.clone().requires_grad_()
    gates = straight_through_gates(logits.softmax(-1), torch.tensor([[0]]))
    gates.sum().backward()
    p = LOGITS.softmax(-1)[0]
    torch.testing.assert_close(logits.grad[0], p[0] * (torch.eye(4)[0] - p))


def test_a_lower_temperature_sharpens_the_gradient_and_not_the_choice():
    def grad(temperature):
        made = router(StraightThroughRouter(temperature), LOGITS, 1)
        made(torch.eye(1), ALL).gates.sum().backward()
        return made.weight.grad[:, 0]

    p = (LOGITS / 2).softmax(-1)[0]
    torch.testing.assert_close(grad(2.0), p[0] * (torch.eye(4)[0] - p) / 2)
    assert not torch.allclose(grad(2.0), grad(1.0))


def test_the_layer_is_the_mean_of_its_experts_and_its_router_learns_from_what_they_say():
    """d loss / d logits = sum over the chosen of <d loss / d y, expert(x)> d p / d logits."""
    moe, x = layer(MoEConfig(4, 2, 12, router=StraightThroughRouter())).double(), torch.randn(1, 1, 8).double()
    y, probe = moe(x, layout(1, 1)), torch.randn(1, 1, 8).double()
    (found,) = torch.autograd.grad((y * probe).sum(), moe.router.weight)
    logits = (x[0] @ moe.router.weight.T).detach().requires_grad_()
    chosen = logits.topk(2).indices[0]
    said = [
        moe.experts.down.weight[e] @ (torch.nn.functional.silu(moe.experts.gate.weight[e] @ x[0, 0])
                                      * (moe.experts.up.weight[e] @ x[0, 0]))
        for e in chosen
    ]  # fmt: skip
    torch.testing.assert_close(y[0, 0], (said[0] + said[1]) / 2)
    stand_in = sum(logits.softmax(-1)[0, e] * (probe[0, 0] @ s.detach()) for e, s in zip(chosen, said, strict=True))
    (of_logits,) = torch.autograd.grad(stand_in, logits)
    torch.testing.assert_close(found, of_logits.T @ x[0])


def test_log_prob_by_hand():
    """Probabilities 1/2, 1/4, 1/4: first expert 1 (1/4), then 0 among 0 and 2 (2/3)."""
    logits = torch.tensor([[2.0, 1.0, 1.0]]).log()
    torch.testing.assert_close(log_prob(logits, torch.tensor([[1, 0]])).exp(), torch.tensor([1 / 6]))
    torch.testing.assert_close(log_prob(logits, torch.tensor([[1]])).exp(), torch.tensor([0.25]))


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_probabilities_of_all_draws_sum_to_one(top_k):
    draws = torch.tensor(list(permutations(range(4), top_k)))
    total = log_prob(torch.randn(1, 4).double().expand(len(draws), -1), draws).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=1e-12)


def test_draws_are_as_frequent_as_their_probability_says():
    torch.manual_seed(0)
    logits, n = torch.tensor([[1.0, 0.0, -1.0]]), 40_000
    drawn = sample(logits.expand(n, -1), 2)
    for pair in permutations(range(3), 2):
        p = log_prob(logits, torch.tensor([pair])).exp().item()
        found = (drawn == torch.tensor(pair)).all(-1).float().mean().item()
        assert found == pytest.approx(p, abs=5 * (p * (1 - p) / n) ** 0.5)


@pytest.mark.parametrize("size", [1.0, 1e4, 1e8])
@pytest.mark.parametrize("config", HARD)
def test_no_logit_makes_a_gradient_nan(config, size):
    made = router(config, size * torch.randn(64, 8), 3).train()
    routing = made(torch.eye(64), torch.ones(64, dtype=torch.bool))
    total = routing.gates.square().sum() + routing.scores.square().sum() + entropy(routing.logits).sum()
    (total if routing.log_probs is None else total + routing.log_probs.sum()).backward()
    assert made.weight.grad.isfinite().all() and gumbel_noise(routing.logits).isfinite().all()


def test_entropy_by_hand():
    torch.testing.assert_close(entropy(torch.zeros(1, 4)), torch.tensor([4.0]).log())
    assert entropy(torch.tensor([[1e4, 0.0]])).item() == 0.0


def test_padding_chooses_nothing():
    for config in HARD:
        routing = route(config, torch.randn(3, 4), valid=[True, False, True])
        assert (routing.experts[routing.tokens == 1] == 4).all() and (routing.gates[routing.tokens == 1] == 0).all()
    assert routing.log_probs[1] == 0 and (routing.log_probs[[0, 2]] != 0).all()


def test_a_layer_leaves_its_choices_and_its_entropy_when_asked():
    moe = layer(MoEConfig(4, 1, 12, router=ReinforceRouter(entropy=0.5)))
    where = layout(2, 3, auxiliary=[], choices=[])
    where.positions[0, 0] = -1
    x = torch.randn(2, 3, 8)
    moe(x, where)
    assert where.choices is not None
    assert [tuple(choice.log_probs.shape) for choice in where.choices] == [(2, 3)]
    assert where.choices[0].log_probs[0, 0] == 0
    expected = -0.5 * entropy((x @ moe.router.weight.T).flatten(0, 1))[1:].mean()
    torch.testing.assert_close(torch.stack(where.auxiliary), expected[None])
    where = layout(2, 3, choices=[])
    moe(x, where)
    assert where.auxiliary is None and len(where.choices) == 1
    where = layout(2, 3, auxiliary=[], choices=[])
    moe.eval()(x, where)
    assert where.choices == []


def test_they_can_be_balanced_by_losses():
    for config in HARD:
        moe = MoE(MoEConfig(4, 1, 12, router=config, balance=Balance(load=0.01, z=0.001)), 8)
        where = layout(2, 3, auxiliary=[])
        moe(torch.randn(2, 3, 8), where)
        assert len(where.auxiliary) == 2 + isinstance(config, ReinforceRouter)


@pytest.mark.usefixtures("unchecked")
def test_errors():
    with pytest.raises(ValueError, match="temperature=0.0; expected a positive number"):
        StraightThroughRouter(0.0)
    with pytest.raises(ValueError, match="baseline 'means' is unknown; did you mean 'mean'"):
        ReinforceRouter("means")
    with pytest.raises(ValueError, match="discount=1.5; expected a number from 0 to 1"):
        ReinforceRouter(discount=1.5)
    with pytest.raises(ValueError, match="entropy=-1.0; expected at least 0"):
        ReinforceRouter(entropy=-1.0)
    with pytest.raises(ValueError, match="capacity_factor with a ReinforceRouter"):
        MoEConfig(4, 1, 12, router=ReinforceRouter(), capacity_factor=1.0)
