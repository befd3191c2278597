"""A dense model turned into a mixture of experts computes the same, until it is trained."""

from dataclasses import replace

import pytest
import torch

from groundup import presets
from groundup.model import MLPConfig, MoE, MoEConfig, MultiTokenConfig, TopKRouter, Transformer, upcycle

from .variants import build, tokens

DENSE = presets.llama(vocab_size=50, d_model=16, num_layers=3, num_heads=2, d_ff=24)


@pytest.mark.parametrize(
    "moe",
    [
        MoEConfig(8, 1, 24),
        MoEConfig(8, 3, 24),
        MoEConfig(4, 2, 24, router=TopKRouter("sigmoid", bias_rate=0.001)),
        MoEConfig(8, 2, 12, router=TopKRouter(scale=2.0)),
        MoEConfig(12, 6, 8, router=TopKRouter(scale=3.0)),
    ],
    ids=["switch", "copies", "sigmoid", "halves", "thirds"],
)
def test_step_zero_logits_equal_the_dense_parents(moe):
    dense = build(DENSE)
    model = upcycle(dense, moe)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens()), dense(tokens()), rtol=1e-5, atol=1e-5)
    assert all(isinstance(block.ffn, MoE) for block in model.blocks)


def test_a_plain_layer_and_every_other_layer():
    block = replace(DENSE.blocks[0], ffn=MLPConfig(24, gated=False, activation="relu2"))
    dense = build(replace(DENSE, blocks=(block,)))
    model = upcycle(dense, MoEConfig(4, 2, 24, gated=False, activation="relu2"), every=2)
    assert [isinstance(b.ffn, MoE) for b in model.blocks] == [True, False, True]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens()), dense(tokens()), rtol=1e-5, atol=1e-5)


def test_it_is_a_copy_and_training_parts_the_experts():
    dense = build(DENSE)
    before = {name: t.clone() for name, t in dense.state_dict().items()}
    model = upcycle(dense, MoEConfig(4, 2, 24))
    up = model.blocks[0].ffn.experts.up.weight
    assert torch.equal(up[0], up[3])
    model(tokens()).square().sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    assert not torch.equal(up[0], up[3])
    assert all(torch.equal(before[name], t) for name, t in dense.state_dict().items())


def test_seeds_give_other_routers_and_the_same_logits():
    a, b = (upcycle(build(DENSE), MoEConfig(4, 2, 24), seed=seed) for seed in (0, 1))
    assert not torch.equal(a.blocks[0].ffn.router.weight, b.blocks[0].ffn.router.weight)
    with torch.no_grad():
        torch.testing.assert_close(a(tokens()), b(tokens()))


@pytest.mark.parametrize(
    ("moe", "message"),
    [
        (MoEConfig(4, 2, 24, gated=False), "experts need gated=True"),
        (MoEConfig(4, 2, 24, activation="relu"), "experts need gated=True and activation='silu'"),
        (MoEConfig(4, 2, 24, router=TopKRouter(renormalise=False)), r"use TopKRouter\(renormalise=True, scale=1\)"),
        (MoEConfig(4, 2, 12), "gates must sum to 2"),
        (MoEConfig(4, 3, 12, router=TopKRouter(scale=2.0)), "divide num_experts=4 and top_k=3"),
        (MoEConfig(4, 2, 20), "d_ff=24 in slices of 20 does not fit"),
        (MoEConfig(4, 2, 48), "d_ff=24 in slices of 48 does not fit"),
        (MoEConfig(4, 2, 24, num_shared=1), "shared experts add to the output"),
        (MoEConfig(4, 2, 24, capacity_factor=1.0), "drops take from it"),
    ],
)
def test_what_could_not_be_equal_is_refused(moe, message):
    with pytest.raises(ValueError, match=f"upcycle: layer 0.*{message}"):
        upcycle(Transformer(DENSE), moe)


def test_models_that_cannot_be_upcycled():
    biased = replace(DENSE, blocks=(replace(DENSE.blocks[0], ffn=MLPConfig(24, bias=True)),))
    with pytest.raises(ValueError, match="layer 0 has no dense feed-forward layer without biases"):
        upcycle(Transformer(biased), MoEConfig(4, 2, 24))
    with pytest.raises(ValueError, match="train them after upcycling"):
        upcycle(Transformer(replace(DENSE, multi_token=MultiTokenConfig())), MoEConfig(4, 2, 24))
