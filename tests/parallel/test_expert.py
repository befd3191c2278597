from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from groundup.model import AttentionConfig, BlockConfig, MLPConfig, ModelConfig, Transformer
from groundup.model.balance import Balance
from groundup.model.moe import MoE, MoEConfig
from groundup.model.position import Layout
from groundup.model.router import ExpertChoiceRouter, HashRouter, TopKRouter
from groundup.parallel.expert import all_to_all, dealt_parameters, expert_parallel, sum_replicated_gradients
from groundup.parallel.tensor import full_parameters
from groundup.train.objectives import next_token
from tests.distributed import run_ranks
from tests.thorough import times

D_MODEL = 6
STEPS = times(50)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
ALL_LOSSES = Balance(load=0.3, sequence=0.2, z=0.1)

LAYERS = {
    "top 2 of 8, shared": MoEConfig(8, 2, 10, num_shared=1, balance=ALL_LOSSES),
    "sigmoid, groups, bias": MoEConfig(
        8, 2, 10, router=TopKRouter("sigmoid", num_groups=4, top_groups=2, bias_rate=0.001), balance=ALL_LOSSES
    ),
    "hash, not gated": MoEConfig(4, 1, 10, router=HashRouter(), gated=False, activation="gelu"),
    "every expert": MoEConfig(4, 4, 10),
}


def filled(module: nn.Module, dtype: torch.dtype) -> Any:
    generator = torch.Generator().manual_seed(2)
    for p in module.parameters():
        p.data = (torch.randn(p.shape, generator=generator) * 0.3).to(dtype)
    return module


def texts(lengths: list[int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x, positions, ids), a row for each length; the rest of a row is padding."""
    generator = torch.Generator().manual_seed(3)
    rows, seq = len(lengths), max(lengths)
    x = torch.randn(rows, seq, D_MODEL, generator=generator).to(dtype)
    x[..., 0] = 1.0
    positions = torch.arange(seq).expand(rows, seq).clone()
    for row, length in enumerate(lengths):
        positions[row, length:] = -1
    return x, positions, torch.randint(0, 99, (rows, seq), generator=generator)


def run_layer(layer: MoE, x, positions, ids):
    """(y, the gradient of x) of a sum over tokens of losses, balancing losses included; parameters get theirs."""
    x = x.clone().requires_grad_()
    losses: list[torch.Tensor] = []
    y = layer(x, Layout(positions, auxiliary=losses, tokens=ids))
    valid = positions >= 0
    total = (y.sin() * valid[..., None]).sum() + valid.sum() * sum(losses, y.new_zeros(()))
    total.backward()
    return y.detach(), x.grad


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item()


def one_process(config, dtype, towards, lengths):
    """(y, the gradient of x, those of parameters) with all experts and all rows, and the layer."""
    layer = toward(filled(MoE(config, D_MODEL), dtype), towards)
    y, dx = run_layer(layer, *texts(lengths, dtype))
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in layer.named_parameters()}
    return y, dx, gradients, layer


def toward(layer: Any, expert: int | None) -> Any:
    """All tokens prefer this expert, by their channel that is always 1."""
    if expert is not None:
        layer.router.weight.data[:, 0] = torch.arange(layer.config.num_experts).eq(expert) * 100.0
    return layer


def layer_differences(rank, size, config, lengths, dtype, towards=None):
    """By name, the relative difference from one process in float64, and how much is allowed.

    In float32 that is what rounding does: twice what it does to one process.
    """
    dealt = expert_parallel(toward(filled(MoE(config, D_MODEL), dtype), towards))
    x, positions, ids = texts(lengths, dtype)
    own, real = slice(rank, rank + 1), lengths[rank]
    y, dx = run_layer(dealt, x[own, :real], positions[own, :real], ids[own, :real])
    sum_replicated_gradients(dealt)
    found = {"y": y, "x": dx} | dict(full_parameters(dealt, value=lambda p: p.grad))
    results = []
    for number in (dtype, torch.float64):
        y, dx, gradients, whole = one_process(config, number, towards, lengths)
        results.append({"y": y[own, :real], "x": dx[own, :real]} | gradients)
    loads = dealt.router.load.clone()
    dist.all_reduce(loads)
    assert torch.equal(loads, whole.router.load)
    rounded, exact = results
    return {
        name: (difference(found[name], exact[name]), max(TOLERANCE[dtype], 2 * difference(rounded[name], exact[name])))
        for name in exact
        if exact[name].numel()
    }


def compare_layers(rank, size):
    uneven = [5, 9, 1, 7][:size]
    found = {}
    for dtype in TOLERANCE:
        for name, config in LAYERS.items():
            found[name, dtype] = layer_differences(rank, size, config, uneven, dtype)
        config = replace(LAYERS["top 2 of 8, shared"], top_k=1)
        found["all to one expert", dtype] = layer_differences(rank, size, config, uneven, dtype, towards=5)
        found["a rank without tokens", dtype] = layer_differences(rank, size, config, [0, *uneven[1:]], dtype)
        found["one token", dtype] = layer_differences(rank, size, config, [1, 0, 0, 0][:size], dtype)
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_outputs_and_gradients_equal_one_process_with_all_experts_and_tokens(size):
    for rank in run_ranks(compare_layers, size):
        for (name, dtype), errors in rank.items():
            assert all(error < allowed for error, allowed in errors.values()), (name, dtype, errors)


def compare_micro_batches(rank, size):
    """Who depends on the other tokens of the batch sees the rank's own, as of a micro-batch."""
    found = {}
    for name, config in {
        "capacity": MoEConfig(4, 2, 10, capacity_factor=0.75),
        "experts choose": MoEConfig(4, 2, 10, router=ExpertChoiceRouter()),
    }.items():
        whole = filled(MoE(config, D_MODEL), torch.float64)
        dealt: Any = expert_parallel(filled(MoE(config, D_MODEL), torch.float64))
        parts = [texts([7, 5 + r], torch.float64) for r in range(size)]
        expected = [run_layer(whole, *part) for part in parts][rank]
        y, dx = run_layer(dealt, *parts[rank])
        sum_replicated_gradients(dealt)
        gradients = dict(full_parameters(dealt, value=lambda p: p.grad))
        errors = [difference(y, expected[0]), difference(dx, expected[1])]
        errors += [difference(gradients[n], p.grad) for n, p in whole.named_parameters()]
        found[name] = max(errors)
        assert name != "capacity" or dealt.router.dropped > 0
    return found


def test_a_capacity_and_the_experts_choice_are_the_ranks_own():
    for rank in run_ranks(compare_micro_batches, 2):
        assert max(rank.values()) < 1e-12, rank


def transformer(dtype: torch.dtype) -> Transformer:
    attention = AttentionConfig(2, 1, 4)
    moe = MoEConfig(4, 2, 12, num_shared=1, balance=Balance(load=0.02, sequence=0.01, z=0.001))
    blocks = (BlockConfig(attention, MLPConfig(16)), BlockConfig(attention, moe))
    model = Transformer(ModelConfig(vocab_size=23, d_model=8, num_layers=4, blocks=blocks)).to(dtype)
    model.compute_dtype = dtype
    return model


def batch(step: int, rows: list[int]) -> list[dict[str, torch.Tensor]]:
    """A part for each rank, of so many rows; the weights of tokens differ, too."""
    generator = torch.Generator().manual_seed(step)
    # Runs of numbers, so that there is something to learn.
    starts = torch.randint(0, 23, (sum(rows), 1), generator=generator)
    tokens = (starts + torch.arange(11) * torch.randint(1, 3, (sum(rows), 1), generator=generator)) % 23
    mask = (torch.rand(tokens.shape, generator=generator) < 0.8).float()
    return [{"tokens": t, "mask": m} for t, m in zip(tokens.split(rows), mask.split(rows), strict=True)]


def train(model: nn.Module, parts: Any, steps: int, summed: Any) -> list[float]:
    """The mean loss of each step; `summed` adds up gradients and (loss, weight) over ranks."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = next_token(model, parts(step))
        loss.total.backward()
        total, weight = summed(model, torch.stack([loss.total.detach().double(), loss.weight.double()])).unbind()
        for p in model.parameters():
            assert p.grad is not None
            p.grad /= weight.to(p.dtype)
        optimizer.step()
        losses.append((total / weight).item())
    return losses


def sum_ranks(model: nn.Module, sums: torch.Tensor) -> torch.Tensor:
    sum_replicated_gradients(model)
    dist.all_reduce(sums)
    return sums


def train_both(rank, size, dtype, recompute):
    rows = [2, 1, 3, 1][:size]

    def together(step: int) -> dict[str, torch.Tensor]:
        parts = batch(step, rows)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    dealt = transformer(dtype)
    dealt.recompute = recompute
    expert_parallel(dealt)
    found = train(dealt, lambda step: batch(step, rows)[rank], STEPS, sum_ranks)
    if rank:
        return found, None
    return found, train(transformer(dtype), together, STEPS, lambda model, sums: sums)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [2])
def test_many_steps_equal_one_process(size, dtype):
    (found, expected), *others = run_ranks(train_both, size, dtype, size == 2, timeout=600)
    assert all(other == found for other, _ in others)
    assert expected[-1] < (0.7 if STEPS >= 200 else 1.0) * expected[0]
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < TOLERANCE[dtype]


def count_bytes(rank, size):
    """(bytes that left this rank in its all-to-alls, pairs of token and expert whose expert is elsewhere)."""
    sent = []
    real = dist.all_to_all_single

    def counting(output, rows, receives=None, sends=None, **options):
        parts = rows.split(sends) if sends else rows.chunk(size)
        sent.append(sum(part.nbytes for r, part in enumerate(parts) if r != rank))
        return real(output, rows, receives, sends, **options)

    layer = expert_parallel(filled(MoE(LAYERS["top 2 of 8, shared"], D_MODEL), torch.float32))
    x, positions, ids = texts([40] * size, torch.float32)
    routing = layer.router(x[rank], positions[rank] >= 0)
    away = (routing.experts // (8 // size) != rank).sum().item()
    dist.all_to_all_single = counting
    run_layer(layer, x[rank : rank + 1], positions[rank : rank + 1], ids[rank : rank + 1])
    dist.all_to_all_single = real
    return sent, away


@pytest.mark.parametrize("size", [2, 4])
def test_volume_is_what_the_formula_says(size):
    """Four times the pairs that go elsewhere, d_model numbers each; and a count for each of the others' experts."""
    results = run_ranks(count_bytes, size)
    total, away = (sum(column) for column in zip(*((sum(sent), away) for sent, away in results), strict=True))
    assert total == 4 * away * D_MODEL * 4 + size * 8 * (8 - 8 // size)
    for (counts, there, *rest), mine in results:
        assert counts == 8 * (8 - 8 // size) and there == mine * D_MODEL * 4
        assert len(rest) == 3  # back, and both again for gradients


def by_hand(rank, size):
    rows = torch.tensor([[1.0], [2.0], [3.0]]) + 10 * rank
    rows.requires_grad_()
    # Rank 0 keeps one row and sends two; rank 1 sends all three.
    sends, receives = ([1, 2], [1, 3]) if rank == 0 else ([3, 0], [2, 0])
    found = all_to_all(rows, sends, receives)
    (found * (rank + 1)).sum().backward()

    names = list(dict(transformer(torch.float32).named_parameters()))
    model = transformer(torch.float32)
    whole = {name: p.detach().clone() for name, p in model.named_parameters()}
    expert_parallel(model)
    assert list(dict(model.named_parameters())) == names
    dealt = dealt_parameters(model)
    assert dealt == {f"blocks.{i}.ffn.experts.{stack}.weight" for i in (1, 3) for stack in ("gate", "up", "down")}
    for name, p in model.named_parameters():
        assert torch.equal(p, whole[name].chunk(size)[rank] if name in dealt else whole[name])
    assert all(torch.equal(p, whole[name]) for name, p in full_parameters(model))

    with pytest.raises(ValueError, match=r"this Linear has no experts"):
        expert_parallel(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"experts\.gate: 3 experts cannot be divided over 2 ranks"):
        expert_parallel(MoE(MoEConfig(3, 1, 4), D_MODEL))
    return found.flatten().tolist(), rows.grad.flatten().tolist()


def test_rows_travel_and_gradients_return_and_experts_are_dealt():
    first, second = run_ranks(by_hand, 2)
    assert first == ([1.0, 11.0, 12.0, 13.0], [1.0, 2.0, 2.0])
    assert second == ([2.0, 3.0], [1.0, 1.0, 1.0])
