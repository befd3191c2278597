"""The ledger of experts by hand, and in training against torch's own counter."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from groundup.accounting import count_parameters, forward_flops, ledger, optimizer_ledger, training_ledger
from groundup.accounting.experts import pairs
from groundup.model import (
    AttentionConfig,
    Balance,
    BlockConfig,
    ExpertChoiceRouter,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    MultiTokenConfig,
    TopKRouter,
    Transformer,
)  # fmt: skip
from groundup.optim import muon_adamw, orthogonalize
from groundup.optim.groups import split_for_muon
from groundup.train import next_token

MOE = MoEConfig(8, 2, 12, num_shared=1)


def config(*ffns, **options):
    blocks = tuple(BlockConfig(AttentionConfig(4, 2, 4), ffn) for ffn in ffns)
    return ModelConfig(50, 16, len(ffns), blocks, **options)


def test_rows_by_hand():
    rows = {row.name: row.flops for row in ledger(config(MOE), seq=10)}
    assert rows["router"] == 2 * 10 * 16 * 8
    assert rows["expert_gate"] == rows["expert_up"] == rows["expert_down"] == 2 * 10 * 2 * 16 * 12
    assert rows["shared_gate"] == rows["shared_up"] == rows["shared_down"] == 2 * 10 * 16 * 12
    assert rows["activation"] == 5 * (2 + 1) * 10 * 12


def test_active_and_total_parameters_by_hand():
    count = count_parameters(config(MOE, MLPConfig(24)))
    assert count.total - count.active == (8 - 2) * 3 * 16 * 12
    further = count_parameters(config(MOE, multi_token=MultiTokenConfig(2)))
    assert further.total - further.active == 3 * (8 - 2) * 3 * 16 * 12
    dense = count_parameters(config(MLPConfig(24)))
    assert dense.active == dense.total


def test_mixtral_has_the_published_46_7_and_12_9_billion_parameters():
    block = BlockConfig(AttentionConfig(32, 8, 128), MoEConfig(8, 2, 14336))
    count = count_parameters(ModelConfig(32000, 4096, 32, (block,)))
    assert count.total == 46_702_792_704 and round(count.active / 1e9, 1) == 12.9


def test_equal_active_flops_mean_equal_work_but_for_the_router():
    dense, sparse = config(MLPConfig(24)), config(MoEConfig(8, 2, 12))
    assert forward_flops(sparse, 10) - forward_flops(dense, 10) == 2 * 10 * 16 * 8


@pytest.mark.parametrize(("factor", "expected"), [(None, 20), (2.0, 20), (1.0, 20), (0.5, 16)])
def test_pairs_under_capacity(factor, expected):
    """Ten tokens of two experts each: half of an even share is ceil(1.25) = 2 places in each of eight experts."""
    assert pairs(replace(MOE, capacity_factor=factor), 10) == expected


def test_pairs_of_expert_choice_fill_every_place():
    assert pairs(MoEConfig(8, 2, 12, router=ExpertChoiceRouter()), 10) == 8 * 3


@pytest.mark.parametrize("recompute", [0, 1, 2])
@pytest.mark.parametrize("shared", [0, 2])
def test_a_training_step_equals_torchs_counter(shared, recompute):
    """Backward and recomputation too, with a router that learns and all balancing losses."""
    router = TopKRouter("sigmoid", bias_rate=0.01)
    first = MoEConfig(4, 2, 12, shared, router, Balance(0.01, 0.01, 0.01))
    made = config(first, MoEConfig(8, 3, 8, shared))
    model = Transformer(made).double()
    model.compute_dtype, model.recompute = torch.float64, recompute
    with FlopCounterMode(display=False) as counter:
        next_token(model, {"tokens": torch.randint(0, 50, (2, 13))}).total.backward()
    rows = training_ledger(made, seq=12, batch=2, causal=False, recomputed_layers=recompute, optimizer=None)
    assert sum(row.flops for row in rows if row.kind != "elementwise") == counter.get_total_flops()


def test_muon_orthogonalises_each_expert_by_itself_and_leaves_the_router_to_adamw():
    model = Transformer(config(MOE))
    matrices, rest = split_for_muon(model)
    experts = model.blocks[0].ffn.experts
    assert {id(p) for p in experts.parameters()} <= {id(p) for p in matrices}
    assert "blocks.0.ffn.router.weight" in {name for name, _ in rest}
    stack = torch.randn(3, 6, 4)
    torch.testing.assert_close(
        orthogonalize(stack, dtype=None), torch.stack([orthogonalize(m, dtype=None) for m in stack])
    )
    optimizer = muon_adamw(model)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] > 0 for p in group["params"]}
    assert {id(p) for p in model.blocks[0].ffn.parameters()} <= decayed


def test_muons_products_over_stacks_equal_torchs_counter():
    made = config(MOE)
    matrices, _ = split_for_muon(Transformer(made))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for p in matrices:
            orthogonalize(p)
    counted = next(row.flops for row in optimizer_ledger(made, "muon_adamw") if row.name == "orthogonalize")
    assert counted == counter.get_total_flops()
