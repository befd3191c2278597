"""REINFORCE against the exact gradient: every choice that could be made, weighed by its probability."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from groundup.model import (
    AttentionConfig,
    BlockConfig,
    ModelConfig,
    MoEConfig,
    MultiTokenConfig,
    ReinforceRouter,
    Transformer,
    hard_choice,
)
from groundup.model.hard_choice import Choice
from groundup.train import objectives
from groundup.train.reinforce import costs_to_go, greedy_nats, mean_of_others, score_function

EXPERTS, SEQ = 2, 2


def model(layers, router=None, **options):
    moe = MoEConfig(EXPERTS, 1, 4, router=router or ReinforceRouter(entropy=0.0))
    config = ModelConfig(5, 8, layers, (BlockConfig(AttentionConfig(2, 2, 4), moe),), **options)
    made = Transformer(config).double()
    made.compute_dtype = torch.float64
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return made.train()


def batch(rows):
    return {"tokens": torch.tensor([[1, 2, 3], [4, 0, 2]])[:rows]}


def gradients(total, made):
    found = torch.autograd.grad(total, list(made.parameters()), materialize_grads=True, allow_unused=True)
    return torch.cat([g.flatten() for g in found])


def exact_and_estimates(monkeypatch, made, layers, rows, of=None, z_loss=0.0):
    """(gradient of the expected loss, probabilities of all choices, the estimate that each would give)."""
    of = of or made
    tokens, expected, probabilities, estimates = batch(rows)["tokens"], 0.0, [], []
    for experts in product(range(EXPERTS), repeat=layers * rows * SEQ):
        drawn = list(torch.tensor(experts).view(layers, rows * SEQ, 1)) * 2  # for two passes
        monkeypatch.setattr(hard_choice, "sample", lambda logits, top_k, drawn=drawn: drawn.pop(0))
        choices = []
        logits = made.logits(made.hidden(tokens[:, :-1], auxiliary=[], choices=choices))
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
        loss = loss + z_loss * logits.logsumexp(-1).square().sum()
        probability = torch.stack([choice.log_probs.sum() for choice in choices]).sum().exp()
        expected = expected + probability * loss
        probabilities.append(probability.detach())
        estimates.append(gradients(objectives.next_token(made, batch(rows), z_loss=z_loss).total, of))
    return gradients(expected, of), torch.stack(probabilities), torch.stack(estimates)


@pytest.mark.parametrize(
    ("layers", "rows", "baseline", "discount"),
    [(2, 1, "none", 1.0), (1, 2, "mean", 1.0), (2, 1, "greedy", 1.0), (1, 2, "mean", 0.0)],
)
def test_the_estimate_is_unbiased_over_all_choices(monkeypatch, layers, rows, baseline, discount):
    """All 16 choices; also for the weights below the routers. At discount 0 only the last block's choices are."""
    made = model(layers, ReinforceRouter(baseline, discount, entropy=0.0))
    exact, probabilities, estimates = exact_and_estimates(monkeypatch, made, layers, rows)
    assert probabilities.sum().item() == pytest.approx(1.0)
    torch.testing.assert_close(probabilities @ estimates, exact, rtol=1e-9, atol=1e-9)
    assert (estimates - exact).abs().max() > 0.1


@pytest.mark.parametrize("baseline", ["none", "greedy"])
def test_a_choice_answers_for_the_z_loss_too(monkeypatch, baseline):
    made = model(1, ReinforceRouter(baseline, 1.0, entropy=0.0))
    exact, probabilities, estimates = exact_and_estimates(monkeypatch, made, 1, 1, z_loss=0.5)
    torch.testing.assert_close(probabilities @ estimates, exact, rtol=1e-9, atol=1e-9)


def test_without_the_losses_to_come_the_first_of_two_blocks_is_biased(monkeypatch):
    made = model(2, ReinforceRouter("none", 0.0, entropy=0.0))
    exact, probabilities, estimates = exact_and_estimates(monkeypatch, made, 2, 1)
    assert (probabilities @ estimates - exact).abs().max() > 1e-4


def test_baselines_lower_the_variance(monkeypatch):
    """The exact variance of the router's gradient, from all 16 choices of two rows: 26.5 without, 11.0 with
    either."""
    variance = {}
    for baseline in ("none", "mean", "greedy"):
        made = model(1, ReinforceRouter(baseline, 0.0, entropy=0.0))
        exact, probabilities, estimates = exact_and_estimates(monkeypatch, made, 1, 2, made.blocks[0].ffn.router)
        variance[baseline] = (probabilities @ (estimates - exact).square()).sum().item()
    assert variance["mean"] < 0.5 * variance["none"]
    assert variance["greedy"] < 0.5 * variance["none"]


def test_costs_to_go_by_hand():
    nats = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    assert costs_to_go(nats, 1.0).tolist() == [[15.0, 14.0, 12.0, 8.0]]
    assert costs_to_go(nats, 0.0).tolist() == nats.tolist()
    assert costs_to_go(nats, 1.0, torch.tensor([[0, 0, 1, 1]])).tolist() == [[3.0, 2.0, 12.0, 8.0]]


def test_the_mean_of_others_leaves_oneself_out():
    costs = torch.tensor([[1.0, 10.0], [2.0, 20.0], [6.0, 30.0]])
    assert mean_of_others(costs).tolist() == [[4.0, 25.0], [3.5, 20.0], [1.5, 15.0]]
    assert mean_of_others(costs[:1]).tolist() == [[0.0, 0.0]]


def test_the_loss_keeps_its_value_and_evaluation_has_no_choices():
    made, b = model(1), batch(2)
    torch.manual_seed(0)
    found = objectives.next_token(made, b)
    torch.manual_seed(0)
    logits = made(b["tokens"][:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), b["tokens"][:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(found.total, expected)
    made.eval()
    assert torch.equal(objectives.next_token(made, b).total, objectives.next_token(made, b).total)
    assert gradients(objectives.next_token(made, b).total, made.blocks[0].ffn.router).abs().sum() == 0


def test_what_the_mask_leaves_out_costs_nothing():
    made, b = model(1), batch(2) | {"mask": torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])}
    hidden = made.hidden(b["tokens"][:, :-1])
    nats = objectives.reinforce.token_nats(made, hidden, b)
    assert (nats > 0).tolist() == [[True, False], [False, False]]


def test_the_greedy_pass_takes_the_best_and_leaves_every_mode_as_it_was():
    made, b = model(1, ReinforceRouter("greedy", entropy=0.0)), batch(2)
    made.blocks[0].mixer.eval()
    modes = [module.training for module in made.modules()]
    found = greedy_nats(made, b, {})
    assert [module.training for module in made.modules()] == modes
    log_probs = made.eval()(b["tokens"][:, :-1]).log_softmax(-1)
    torch.testing.assert_close(found, -log_probs.gather(-1, b["tokens"][:, 1:, None])[..., 0])
    assert greedy_nats(made, b, {}) is None  # nothing is sampled in evaluation
    assert greedy_nats(model(1), b, {}) is None


def test_without_gradients_a_model_in_training_mode_has_a_loss():
    made, b = model(1, ReinforceRouter("greedy", entropy=0.0)), batch(2)
    torch.manual_seed(0)
    expected = objectives.next_token(made, b).total
    torch.manual_seed(0)
    with torch.no_grad():
        torch.testing.assert_close(objectives.next_token(made, b).total, expected)


def test_a_router_that_samples_in_a_model_that_does_not_train_has_its_baseline():
    made, b = model(1, ReinforceRouter("greedy", entropy=0.0)), batch(2)
    router = made.eval().blocks[0].ffn.router.train()
    torch.manual_seed(0)
    found = [gradients(objectives.next_token(made, b).total, router).abs().sum() for _ in range(20)]
    assert max(found) > 0, "only where all of the sample is the best is there nothing to learn"
    assert router.training and not made.training


def test_it_finds_the_best_expert_from_its_costs_alone():
    """Costs 3, 1, 2 for experts 0, 1, 2, seen only for what was drawn."""
    torch.manual_seed(0)
    logits, costs = torch.zeros(1, 3, requires_grad=True), torch.tensor([3.0, 1.0, 2.0])
    for _ in range(150):
        drawn = hard_choice.sample(logits.expand(8, -1), 1)
        choice = Choice(hard_choice.log_prob(logits.expand(8, -1), drawn)[:, None], ReinforceRouter())
        (gradient,) = torch.autograd.grad(score_function([choice], costs[drawn], None, {}), logits)
        logits = (logits - 0.05 * gradient).detach().requires_grad_()
    assert logits.softmax(-1)[0, 1] > 0.9


def test_recomputed_blocks_leave_the_same_choices():
    made, b, found = model(2), batch(2), []
    for recompute in (False, True):
        made.recompute = recompute
        torch.manual_seed(0)
        found.append(gradients(objectives.next_token(made, b).total, made))
    torch.testing.assert_close(found[0], found[1])


def test_multi_token_refuses_it():
    with pytest.raises(ValueError, match="trained by next_token alone"):
        objectives.multi_token(model(1, multi_token=MultiTokenConfig(1)), {"tokens": torch.tensor([[1, 2, 3, 4]])})
