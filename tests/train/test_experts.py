"""A mixture of experts in the trainer: losses, loads and biases under micro-batches, ranks, kills and compilers."""

from dataclasses import replace

import pytest
import torch

from groundup import presets
from groundup.model import (
    AttentionConfig,
    Balance,
    BlockConfig,
    MoEConfig,
    MultiTokenConfig,
    TopKRouter,
    Transformer,
)
from groundup.model.balance import routers, step_loads
from groundup.train import next_token
from groundup.train.compiling import compile_blocks
from groundup.train.objectives import multi_token, pretraining
from groundup.train.step import compute_gradients
from tests.distributed import run_ranks
from tests.model.variants import build, small, tokens
from tests.train.small import VOCAB, Batches, Collected, batch, tiny_model, tiny_run

MOE = MoEConfig(4, 2, 16, router=TopKRouter("sigmoid", bias_rate=0.01))


def sparse_model(moe=MOE, seed=0, **options):
    dense = presets.llama(vocab_size=VOCAB, d_model=16, num_layers=2, num_heads=2, d_head=8, d_ff=32)
    model = Transformer(replace(dense, blocks=(replace(dense.blocks[0], ffn=moe),), **options))
    model.init_weights(seed)
    return model


def biases(model):
    return [router.bias.clone() for router in routers(model).values()]


def gradients(model, micro):
    model.zero_grad()
    compute_gradients(model, next_token, micro, float("inf"))
    return [p.grad.clone() for p in model.parameters()]


def test_the_objective_adds_weight_times_the_losses_and_says_so():
    plain, balanced = sparse_model(), sparse_model(replace(MOE, balance=Balance(0.5, 0.25, 0.125)))
    b = batch(0)
    first, second = next_token(plain, b), next_token(balanced, b)
    auxiliary = []
    balanced.hidden(b["tokens"][:, :-1], auxiliary=auxiliary)
    assert len(auxiliary) == 6  # three of each layer
    torch.testing.assert_close(second.total - first.total, 32 * sum(auxiliary), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(second.metrics["auxiliary"], 32 * sum(auxiliary).detach())
    assert first.metrics["auxiliary"] == 0 and first.metrics["expert_load"] >= 32


def test_a_model_without_experts_has_no_metrics():
    assert next_token(tiny_model(), batch(0)).metrics == {}


def test_micro_batches_give_the_same_gradient_and_loads():
    """Exactly so for losses that are means over tokens or sequences; the loss over a whole batch is not linear."""
    model = sparse_model(replace(MOE, balance=Balance(sequence=0.5, z=0.1)))
    b = batch(0)
    whole, loads = gradients(model, [b]), [load.clone() for load in step_loads(model)]
    for sizes in ([1, 1, 1, 1], [3, 1]):
        parts = gradients(model, [{"tokens": t} for t in b["tokens"].split(sizes)])
        for p, q in zip(parts, whole, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
        assert all(torch.equal(p, q) for p, q in zip(step_loads(model), loads, strict=True))
    assert loads[0].sum() == 32 * 2


@pytest.mark.parametrize("recompute", [1, True])
def test_recomputation_changes_no_gradient_and_counts_nothing_twice(recompute):
    balance = Balance(0.5, 0.25, 0.125)
    kept, again = (sparse_model(replace(MOE, balance=balance, capacity_factor=1.0)) for _ in range(2))
    again.recompute = recompute
    micro = [batch(0), batch(1)]
    for p, q in zip(gradients(kept, micro), gradients(again, micro), strict=True):
        assert torch.equal(p, q)
    assert all(torch.equal(p, q) for p, q in zip(step_loads(kept), step_loads(again), strict=True))
    assert step_loads(kept)[0].sum() == 2 * 32 * 2
    auxiliary = []
    again.hidden(batch(0)["tokens"], auxiliary=auxiliary).sum().backward()
    assert len(auxiliary) == 6  # the second run leaves nothing behind


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_give_the_same_gradient_and_loads(recompute):
    balance = Balance(0.5, 0.25, 0.125)
    plain, compiled = (sparse_model(replace(MOE, balance=balance, capacity_factor=1.0)) for _ in range(2))
    compiled.recompute = recompute
    try:
        compile_blocks(compiled, required=True)
    except ValueError as error:
        pytest.skip(str(error))
    for number in range(2):  # other loads each time, which must not need another graph
        micro = [batch(number), batch(number + 10)]
        for p, q in zip(gradients(plain, micro), gradients(compiled, micro), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)
        assert all(torch.equal(p, q) for p, q in zip(step_loads(plain), step_loads(compiled), strict=True))


def test_the_bias_moves_once_per_step_by_the_rate():
    model, _, _ = tiny_run(1, model=sparse_model(), micro_batches=2)
    for bias in biases(model):
        assert torch.isin(bias, torch.tensor([-0.01, 0.0, 0.01])).all() and bias.any()
    more, _, _ = tiny_run(1, model=sparse_model(), micro_batches=4)
    assert all(torch.equal(a, b) for a, b in zip(biases(model), biases(more), strict=True))


def test_a_skipped_step_leaves_the_bias_alone():
    spoiled = {2: {"mask": torch.full((4, 9), float("nan"))}}
    bad, _, run = tiny_run(4, model=sparse_model(), source=Batches(changed=spoiled))
    clean, _, _ = tiny_run(4, model=sparse_model(), source=Batches(left_out=(2,)))
    assert run.skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(biases(bad), biases(clean), strict=True))


def test_lookahead_gives_the_same_biases():
    """Steps are queued before anyone looks at them; a bad one must be undone on the device."""
    spoiled = {2: {"mask": torch.full((4, 9), float("nan"))}}
    runs = [tiny_run(6, model=sparse_model(), source=Batches(changed=spoiled), lookahead=n)[0] for n in (0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(*map(biases, runs), strict=True))


def test_a_resumed_run_has_the_biases_of_an_uninterrupted_one(tmp_path):
    whole, _, _ = tiny_run(8, model=sparse_model())
    tiny_run(4, model=sparse_model(), run_dir=tmp_path, checkpoint_every=4)
    resumed, _, _ = tiny_run(8, model=sparse_model(seed=5), run_dir=tmp_path, resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert any(bias.abs().max() > 0.015 for bias in biases(whole))


def on_ranks(rank, size):
    mine = [{k: v.tensor_split(size)[rank] for k, v in batch(i).items()} for i in range(3)]
    model, _, _ = tiny_run(3, model=sparse_model(), source=mine)
    return list(model.state_dict().values())


@pytest.mark.slow
def test_two_ranks_equal_two_micro_batches():
    alone, _, _ = tiny_run(3, model=sparse_model(), source=[batch(i) for i in range(3)], micro_batches=2)
    for weights in run_ranks(on_ranks, 2):
        assert all(torch.equal(a, b) for a, b in zip(weights, alone.state_dict().values(), strict=True))


def test_the_log_shows_loads_and_drops():
    sink = Collected()
    tiny_run(2, model=sparse_model(replace(MOE, capacity_factor=0.5)), sinks=[sink])
    assert all(record["expert_load"] >= 1.0 and 0.3 < record["expert_dropped"] < 0.7 for record in sink.records)


def uneven_start(moe):
    """A router that begins by preferring one expert, as one that has begun to collapse."""
    model = sparse_model(moe)
    with torch.no_grad():
        for router in routers(model).values():
            router.weight[1:] *= 0.3
            router.weight[0] += model.embed.weight.mean(0) + 0.2
    return model


def imbalance(moe, steps=120):
    """Largest max / mean load of a layer, summed over ten batches after training."""
    model, _, _ = tiny_run(steps, model=uneven_start(moe), schedule=None)
    loads = [torch.zeros(moe.num_experts) for _ in routers(model)]
    with torch.no_grad():
        for number in range(1000, 1010):
            model(batch(number)["tokens"])
            for load, router in zip(loads, routers(model).values(), strict=True):
                load += router.load
    return max(float(load.max() / load.mean()) for load in loads)


@pytest.mark.slow
def test_experts_stay_uneven_without_balancing_and_get_even_with_either_kind():
    softmax = MoEConfig(4, 1, 16, router=TopKRouter(renormalise=False))
    with_loss = replace(softmax, balance=Balance(load=0.05))
    with_bias = replace(softmax, router=replace(softmax.router, bias_rate=0.02))
    assert imbalance(softmax) > 1.5
    assert imbalance(with_loss) < 1.3
    assert imbalance(with_bias) < 1.3


def test_what_did_not_run_is_no_part_of_the_statistics():
    """next_token leaves the modules for further tokens alone, whose routers then saw nothing."""
    block = BlockConfig(AttentionConfig(4, 2, 4), MoEConfig(4, 2, 12, balance=Balance(load=0.01)))
    model = build(small(block, multi_token=MultiTokenConfig()))
    loss = next_token(model, {"tokens": tokens(2, 9)})
    assert loss.metrics["expert_load"] / loss.weight >= 1
    assert pretraining(model) is multi_token and pretraining(build(small(block))) is next_token
