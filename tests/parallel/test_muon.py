"""Muon on several ranks: the same weights as on one, for a share of the work each."""

import itertools

import pytest
import torch

from groundup import optim
from groundup.optim import muon
from groundup.parallel import muon as sharing
from groundup.parallel import orthogonalize_on_ranks
from tests.distributed import run_ranks

SHAPES = [(12, 12), (12, 12), (12, 12), (24, 8), (8, 24), (3, 6, 10), (7, 5)]


def trained(together, dtype, steps=6):
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = optim.Muon(params, lr=0.02, dtype=dtype, together=together)
    for step in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        skip = torch.tensor(float(step == 2))
        optimizer.step(skip=skip)
    return [p.detach() for p in params], [optimizer.state[p]["momentum"] for p in params]


def on_ranks(rank, size, dtype):
    seen = []

    def counting(matrices, steps, dtype):
        seen.extend(matrices.unbind())
        return muon.orthogonalize(matrices, steps, dtype)

    sharing.orthogonalize = counting
    params, momenta = trained(orthogonalize_on_ranks, dtype)
    return params, momenta, len(seen)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_several_ranks_train_as_one_and_share_the_work(size, dtype):
    expected, momenta = trained(None, dtype)
    results = run_ranks(on_ranks, size, dtype)
    assert sum(count for _, _, count in results) == 6 * len(SHAPES)
    assert max(count for _, _, count in results) < 6 * len(SHAPES)
    for params, states, _ in results:
        for a, b, c, d in zip(params, expected, states, momenta, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
            assert torch.equal(c, d)
    first, *others = (params for params, _, _ in results)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_alone_it_is_the_plain_computation():
    for a, b in zip(trained(orthogonalize_on_ranks, torch.bfloat16)[0], trained(None, torch.bfloat16)[0], strict=True):
        assert torch.equal(a, b)


def test_a_composite_takes_it_too():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    made = optim.muon_adamw(model, together=orthogonalize_on_ranks)
    assert made.optimizers[0].together is orthogonalize_on_ranks  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_no_rank_has_more_than_four_thirds_of_the_least(ranks):
    stacks = [(2, 5.0), (3, 2.0), (1, 7.0)]
    costs = [cost for count, cost in stacks for _ in range(count)]

    def longest(owners):
        return max(sum(c for c, rank in zip(costs, owners, strict=True) if rank == r) for r in range(ranks))

    best = min(longest(owners) for owners in itertools.product(range(ranks), repeat=len(costs)))
    assert longest([rank for owner in sharing.deal(stacks, ranks) for rank in owner]) <= 4 / 3 * best


def test_ranks_without_a_matrix_take_part():
    owners = sharing.deal([(1, 1.0)], 3)
    assert owners == [[0]]
