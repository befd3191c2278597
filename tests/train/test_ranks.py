"""Sums over ranks, in buckets and in rank order."""

import torch

from groundup.train import ranks
from groundup.train.ranks import sum_over_ranks
from tests.distributed import run_ranks


def test_buckets_keep_the_order_one_kind_and_one_size(monkeypatch):
    monkeypatch.setattr(ranks, "BUCKET_BYTES", 16)
    small = [torch.zeros(2) for _ in range(3)]  # 8 bytes each
    other = torch.zeros(2, dtype=torch.float16)
    large = torch.zeros(9)
    buckets = ranks._buckets([*small, other, large, small[0]])
    assert [[id(t) for t in bucket] for bucket in buckets] == [
        [id(small[0]), id(small[1])], [id(small[2])], [id(other)], [id(large)], [id(small[0])],
    ]  # fmt: skip
    assert ranks._buckets([]) == []


def in_rank_order(rank, size):
    torch.use_deterministic_algorithms(True)
    parts = [torch.tensor([[1.0, 1e8]]), torch.tensor([[1e-8, 1.0]]), torch.tensor([[1.0, -1e8]])]
    mine = [parts[rank].clone(), parts[rank].clone().T]
    sum_over_ranks(mine)
    expected = parts[0] + parts[1] + parts[2]
    return torch.equal(mine[0], expected), torch.equal(mine[1], expected.T)


def test_deterministic_sums_are_those_of_accumulation():
    """1e8 + 1 - 1e8 is 0 in float32 in this order, and 1 in another."""
    assert run_ranks(in_rank_order, 3) == [(True, True)] * 3
