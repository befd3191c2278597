"""The layer as a whole: against loops over tokens, under capacity, in a batch, and with extreme inputs."""

from dataclasses import replace

import pytest
import torch

from groundup import kernels
from groundup.model import (
    AttentionConfig,
    Balance,
    BlockConfig,
    ExpertChoiceRouter,
    HashRouter,
    Layout,
    ModelConfig,
    MoE,
    MoEConfig,
    TopKRouter,
    Transformer,
)
from groundup.model.balance import routers

from .variants import build

PLAIN = MoEConfig(4, 2, 12)


def layout(batch, seq, **options):
    return Layout(torch.arange(seq).expand(batch, seq).clone(), **options)


def layer(config, d_model=8, seed=0):
    made = MoE(config, d_model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return made


def language_model(moe, layers=2):
    return build(ModelConfig(50, 16, layers, (BlockConfig(AttentionConfig(4, 2, 4), moe),)))


def one_token(moe, x, routing, token):
    """The definition, for one token: a sum over its experts."""
    y = torch.zeros_like(x[token])
    act = kernels.ACTIVATIONS[moe.config.activation]
    for pair in (routing.tokens == token).nonzero().flatten().tolist():
        e = int(routing.experts[pair])
        if e == moe.config.num_experts:
            continue
        h = moe.experts.up.weight[e] @ x[token]
        h = act(h) if moe.experts.gate is None else act(moe.experts.gate.weight[e] @ x[token]) * h
        y = y + routing.gates[pair] * (moe.experts.down.weight[e] @ h)
    return y if moe.shared is None else y + moe.shared(x[token])


@pytest.mark.parametrize(
    "config",
    [
        PLAIN,
        replace(PLAIN, gated=False, activation="relu2"),
        replace(PLAIN, num_shared=2, router=TopKRouter("sigmoid", scale=2.5)),
        replace(PLAIN, capacity_factor=0.5),
        replace(PLAIN, router=HashRouter()),
        replace(PLAIN, router=ExpertChoiceRouter()),
    ],
    ids=lambda c: f"{type(c.router).__name__}-{c.capacity_factor}-{c.num_shared}-{c.activation}",
)
def test_equals_a_loop_over_tokens_forward_and_backward(config):
    moe, x = layer(config).double(), torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    where = layout(3, 5, tokens=torch.randint(0, 99, (3, 5)))
    found = moe(x, where)
    flat = x.flatten(0, 1)
    routing = moe.limit(moe.router(flat, torch.ones(15, dtype=torch.bool), where.tokens.flatten()), 3, 5)
    expected = torch.stack([one_token(moe, flat, routing, token) for token in range(15)]).view_as(x)
    torch.testing.assert_close(found, expected)
    wanted = [x, *moe.parameters()]
    probe = torch.randn_like(found)
    pairs = [torch.autograd.grad((y * probe).sum(), wanted, allow_unused=True) for y in (found, expected)]
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a if a is not None else torch.zeros(1), b if b is not None else torch.zeros(1))


def test_padding_changes_nothing_and_gets_nothing():
    moe, x = layer(replace(PLAIN, capacity_factor=1.0)), torch.randn(2, 6, 8)
    where = layout(2, 6)
    where.positions[0, :2] = -1
    y = moe(x, where)
    other = x.clone()
    other[0, :2] = 100.0
    torch.testing.assert_close(moe(other, where)[0, 2:], y[0, 2:])
    assert (y[0, :2] == 0).all() and (y[0, 2:] != 0).any()
    assert moe.router.load.sum() == 2 * 10


def test_capacity_drops_the_latest_by_hand():
    """Six tokens all want expert 0; capacity_factor 1 over 2 experts gives room for three: columns 0 and half of 1."""
    moe = layer(MoEConfig(2, 1, 4, capacity_factor=1.0))
    with torch.no_grad():
        moe.router.weight[0], moe.router.weight[1] = 1.0, -1.0
    y = moe(torch.rand(2, 3, 8) + 0.1, layout(2, 3))
    assert (y != 0).any(-1).tolist() == [[True, True, False], [True, False, False]]
    assert moe.router.load.tolist() == [6.0, 0.0] and moe.router.dropped == 0.5


def test_a_later_token_never_takes_the_place_of_an_earlier_one():
    moe, x = layer(replace(PLAIN, capacity_factor=0.6)), torch.randn(4, 8, 8)
    changed = x.clone()
    changed[:, 5:] = torch.randn(4, 3, 8)
    before, after = moe(x, layout(4, 8)), moe(changed, layout(4, 8))
    assert torch.equal(before[:, :5], after[:, :5])
    assert moe.router.dropped > 0.3


def test_room_for_all_drops_nothing():
    x = torch.randn(3, 7, 8)
    roomy, free = layer(replace(PLAIN, capacity_factor=2.0)), layer(PLAIN)
    torch.testing.assert_close(roomy(x, layout(3, 7)), free(x, layout(3, 7)))
    assert roomy.router.dropped == 0


def test_expert_choice_sees_the_future_which_is_why_it_is_not_in_the_variant_matrix():
    model = language_model(replace(PLAIN, router=ExpertChoiceRouter()))
    x = torch.randint(0, 50, (1, 12))
    changed = x.clone()
    changed[:, 6:] = (x[:, 6:] + 7) % 50
    with torch.no_grad():
        difference = (model(x) - model(changed))[:, :6].abs().max()
    assert difference > 1e-3


def test_neighbours_change_greedy_logits_with_drops_and_do_not_without():
    """The same prompt, alone and among 63 others, at temperature 0."""
    prompt = torch.randint(0, 50, (1, 16), generator=torch.Generator().manual_seed(1))
    others = torch.randint(0, 50, (63, 16), generator=torch.Generator().manual_seed(2))
    differences = {}
    for factor in (None, 1.0):
        model = language_model(replace(PLAIN, capacity_factor=factor))
        with torch.no_grad():
            alone, among = model(prompt), model(torch.cat([others, prompt]))[-1:]
        differences[factor] = (alone - among).abs().max().item()
    assert differences[None] < 1e-5
    assert differences[1.0] > 0.1


def test_losses_reach_the_list_with_their_coefficients_and_only_when_asked():
    config = replace(PLAIN, balance=Balance(load=0.5, sequence=0.25, z=0.125))
    moe, x = layer(config), torch.randn(2, 6, 8)
    single = {}
    for name in ("load", "sequence", "z"):
        moe.config = replace(config, balance=Balance(**{name: 1.0}))
        where = layout(2, 6, auxiliary=[])
        moe(x, where)
        [single[name]] = where.auxiliary or []
    moe.config, where = config, layout(2, 6, auxiliary=[])
    moe(x, where)
    expected = [0.5 * single["load"], 0.25 * single["sequence"], 0.125 * single["z"]]
    torch.testing.assert_close(torch.stack(where.auxiliary or []), torch.stack(expected))
    assert moe(x, layout(2, 6)).shape == x.shape


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_large_inputs_give_no_nan_forward_or_backward(size, dtype, score):
    config = MoEConfig(8, 3, 16, 1, TopKRouter(score, bias_rate=0.1), Balance(0.01, 0.01, 0.001))
    moe, x = layer(config), (size * torch.randn(2, 40, 8)).to(dtype).requires_grad_()
    where = layout(2, 40, auxiliary=[])
    y = moe(x, where)
    (y.float().mean() + sum(where.auxiliary or ())).backward()
    assert y.dtype == dtype and y.isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in moe.parameters())


def test_each_expert_is_initialised_like_a_linear_and_outputs_are_scaled_with_depth():
    config = ModelConfig(20, 64, 8, (BlockConfig(AttentionConfig(2, 2, 8), MoEConfig(4, 2, 32)),))
    model = Transformer(config)
    experts = model.blocks[3].ffn.experts
    for stack, fan_in, scale in ((experts.gate, 64, 1.0), (experts.up, 64, 1.0), (experts.down, 32, 16**-0.5)):
        for weight in stack.weight.unbind():
            assert weight.std().item() == pytest.approx(scale * 0.987 * fan_in**-0.5, rel=0.06)
    assert not torch.equal(experts.up.weight[0], experts.up.weight[1])
    model.init_weights(1, residual="zero")
    assert (model.blocks[0].ffn.experts.down.weight == 0).all() and (experts.up.weight != 0).any()
    assert all((router.load == 0).all() for router in routers(model).values())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(top_k=9), "top_k=9 is more than num_experts=8; use a top_k of 1 to 8"),
        (dict(num_experts=0), "num_experts=0; expected at least 1"),
        (dict(top_k=0), "top_k=0; expected at least 1"),
        (dict(d_ff=0), "d_ff=0; expected at least 1"),
        (dict(num_shared=-1), "num_shared=-1; expected at least 0"),
        (dict(capacity_factor=0.0), "capacity_factor=0.0; expected a positive number, such as 1.25, or None"),
        (dict(capacity_factor=float("nan")), "capacity_factor=nan"),
        (dict(router=TopKRouter(num_groups=3)), "num_experts=8 does not divide into router.num_groups=3"),
        (dict(top_k=5, router=TopKRouter(num_groups=2)), "more than the 4 experts of router.top_groups=1 groups"),
        (dict(activation="sillu"), "activation 'sillu' is unknown; did you mean 'silu'"),
        (dict(router=HashRouter(), balance=Balance(0.1)), "a HashRouter is balanced by itself"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        MoEConfig(**(dict(num_experts=8, top_k=2, d_ff=16) | options))
