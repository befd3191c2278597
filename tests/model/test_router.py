"""Each way of choosing experts, by hand and by what must hold of it."""

from dataclasses import replace

import pytest
import torch

from groundup.model import ExpertChoiceRouter, HashRouter, TopKRouter
from groundup.model.router import Router, choose

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])


def router(config, logits, top_k=2):
    """A router whose logits are given: the tokens are one-hot."""
    made = Router(config, logits.shape[1], top_k, len(logits))
    if made.weight is not None:
        with torch.no_grad():
            made.weight.copy_(logits.T)
    return made


def route(config, logits=LOGITS, top_k=2, valid=None, ids=None, bias=None):
    made = router(config, logits, top_k)
    if bias is not None:
        made.bias.copy_(torch.tensor(bias))
    valid = torch.ones(len(logits), dtype=torch.bool) if valid is None else torch.tensor(valid)
    return made(torch.eye(len(logits)), valid, ids)


def table(routing):
    """{token: {expert: gate}}."""
    found = {}
    for token, expert, gate in zip(
        *(t.tolist() for t in (routing.tokens, routing.experts, routing.gates)), strict=True
    ):
        found.setdefault(token, {})[expert] = gate
    return found


def test_renormalised_softmax_is_a_softmax_over_the_chosen():
    gates = table(route(TopKRouter()))[0]
    assert gates == {0: pytest.approx(0.7310586), 1: pytest.approx(0.2689414)}  # 1 / (1 + e^-1)


def test_plain_softmax_keeps_the_probabilities_of_all():
    gates = table(route(TopKRouter(renormalise=False)))[0]
    assert gates == {0: pytest.approx(0.6439143), 1: pytest.approx(0.2368828)}


def test_switch_learns_from_its_one_gate_and_a_renormalised_one_does_not():
    for renormalise, learns in ((False, True), (True, False)):
        made = router(TopKRouter(renormalise=renormalise), LOGITS, 1)
        made(torch.eye(1), torch.ones(1, dtype=torch.bool)).gates.sum().backward()
        assert bool(made.weight.grad.abs().sum() > 1e-6) is learns


def test_sigmoid_gates_are_scaled_and_the_bias_only_chooses():
    config = TopKRouter("sigmoid", scale=2.5, bias_rate=0.001)
    plain, biased = (table(route(config, bias=bias))[0] for bias in ([0.0] * 4, [0.0, 0.0, 0.0, 5.0]))
    s = LOGITS.sigmoid()[0].tolist()
    assert plain == {0: pytest.approx(2.5 * s[0] / (s[0] + s[1])), 1: pytest.approx(2.5 * s[1] / (s[0] + s[1]))}
    assert biased == {3: pytest.approx(2.5 * s[3] / (s[3] + s[0])), 0: pytest.approx(2.5 * s[0] / (s[3] + s[0]))}


def test_groups_by_hand():
    """Three groups of two. Best single score: group 1. Best two together: group 2."""
    scores = torch.tensor([[0.5, 0.1, 0.9, 0.0, 0.6, 0.6]])
    softmax = TopKRouter(num_groups=3, top_groups=1)
    assert sorted(choose(scores, 2, softmax, None)[0].tolist()) == [2, 3]
    assert sorted(choose(scores, 2, replace(softmax, score="sigmoid"), None)[0].tolist()) == [4, 5]
    assert sorted(choose(scores, 3, replace(softmax, score="sigmoid", top_groups=2), None)[0].tolist()) == [2, 4, 5]


def test_padding_is_sent_to_nobody():
    logits = torch.randn(3, 4)
    for config in (TopKRouter(), ExpertChoiceRouter(), HashRouter()):
        routing = route(config, logits, valid=[True, False, True], ids=torch.tensor([5, 6, 7]))
        of_padding = routing.tokens == 1
        assert (routing.experts[of_padding] == 4).all() and (routing.gates[of_padding] == 0).all()
        assert (routing.experts < 4).any()


def test_expert_choice_by_hand():
    """Two experts, three tokens, one expert per token on average: room for two tokens each (ceil 1.5)."""
    logits = torch.tensor([[9.0, 0.0], [1.0, 0.0], [0.0, 0.5]])
    found = table(route(ExpertChoiceRouter(), logits, top_k=1))
    p = logits.softmax(-1)
    assert found == {
        0: {0: pytest.approx(float(p[0, 0]))},
        1: {0: pytest.approx(float(p[1, 0])), 1: pytest.approx(float(p[1, 1]))},
        2: {1: pytest.approx(float(p[2, 1]))},
    }


def test_expert_choice_loads_are_equal_whatever_the_scores():
    routing = route(ExpertChoiceRouter(), torch.randn(24, 4) + torch.tensor([9.0, 0, 0, 0]), top_k=2)
    assert routing.experts.bincount().tolist() == [12, 12, 12, 12]


def test_hashing_depends_on_the_token_id_alone_and_is_even():
    config, n = HashRouter(), 4096
    routing = route(config, torch.zeros(n, 8), top_k=2, ids=torch.arange(n))
    pairs = routing.experts.view(n, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all() and (routing.gates == 0.5).all()
    counts = routing.experts.bincount()
    assert counts.max() / counts.float().mean() < 1.1
    same = route(config, torch.zeros(2, 8), top_k=2, ids=torch.tensor([77, 77])).experts.view(2, 2)
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], pairs[77])
    other = route(HashRouter(seed=1), torch.zeros(n, 8), top_k=2, ids=torch.arange(n)).experts
    assert not torch.equal(other, routing.experts)


def test_the_router_computes_in_float32_under_bf16():
    made = Router(TopKRouter(), 8, 2, 16)
    x = torch.randn(40, 16).bfloat16()
    routing = made(x, torch.ones(40, dtype=torch.bool))
    assert routing.gates.dtype == routing.logits.dtype == torch.float32
    torch.testing.assert_close(routing.logits, x.float() @ made.weight.T)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4, 1e8])
def test_no_logit_makes_a_gate_or_its_gradient_nan(score, renormalise, size):
    logits = size * torch.randn(64, 8).sign() * torch.rand(64, 8)
    logits[0], logits[1] = -size, size
    made = router(TopKRouter(score, renormalise, num_groups=2, top_groups=1, bias_rate=0.1), logits, 3)
    made.bias.copy_(torch.linspace(-5, 5, 8))  # chooses experts whose scores underflow to zero
    routing = made(torch.eye(64), torch.ones(64, dtype=torch.bool))
    assert (routing.gates >= 0).all() and routing.gates.isfinite().all() and routing.scores.isfinite().all()
    (routing.gates.square().sum() + routing.scores.square().sum()).backward()
    assert made.weight.grad.isfinite().all()


@pytest.mark.usefixtures("unchecked")
def test_errors():
    with pytest.raises(ValueError, match="score 'sigmoyd' is unknown; did you mean 'sigmoid'"):
        TopKRouter("sigmoyd")
    with pytest.raises(ValueError, match="top_groups=3 of num_groups=2"):
        TopKRouter(num_groups=2, top_groups=3)
    with pytest.raises(ValueError, match="bias_rate=-1"):
        TopKRouter(bias_rate=-1.0)
