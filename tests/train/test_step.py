"""One gradient, on one rank and on several: DDP over N ranks is accumulation over N micro-batches."""

import math

import pytest
import torch
import torch.distributed as dist

from groundup.optim import AdamW
from groundup.train import Loss, next_token, train
from groundup.train.noise import NoiseScale
from groundup.train.ranks import is_main, largest_over_ranks, sum_over_ranks, world_size
from groundup.train.step import PendingValues, compute_gradients
from tests.distributed import run_ranks
from tests.train.small import batch, tiny_model


def batches(count, rows):
    """Batches whose rows have different numbers of counted tokens."""
    result = []
    for number in range(count):
        generator = torch.Generator().manual_seed(1000 + number)
        mask = (torch.rand(rows, 9, generator=generator) < 0.6).float()
        result.append(batch(number, rows=rows) | {"mask": mask})
    return result


def train_weights(source, **options):
    model = tiny_model()
    run = train(model, source, next_token, AdamW(model, lr=1e-2), len(source), progress=False, **options)
    return model, run


def ddp_worker(rank, size, rows, deterministic, folder):
    torch.use_deterministic_algorithms(deterministic)
    mine = [{k: v.tensor_split(size)[rank] for k, v in b.items()} for b in batches(6, rows)]
    model, run = train_weights(mine, run_dir=folder, checkpoint_every=3)
    return list(model.state_dict().values()), run.losses, run.tokens


@pytest.mark.parametrize(("size", "deterministic"), [(2, False), (4, True)])
def test_ranks_equal_accumulation_to_the_bit(size, deterministic, tmp_path):
    alone, run = train_weights(batches(6, 4), micro_batches=size)
    for weights, losses, tokens in run_ranks(ddp_worker, size, 4, deterministic, str(tmp_path)):
        assert all(torch.equal(a, b) for a, b in zip(weights, alone.state_dict().values(), strict=True))
        assert losses == run.losses and tokens == run.tokens
    assert (tmp_path / "checkpoints" / "step-6").is_dir() and (tmp_path / "metrics.jsonl").exists()


def poisoned_on_rank_one(rank, size):
    def objective(model, b):
        loss = next_token(model, b)
        bad = rank == 1 and torch.equal(b["tokens"][:, 0], batch(2)["tokens"][2:, 0])
        return Loss(loss.total * (math.nan if bad else 1.0), loss.weight)

    mine = [{k: v.tensor_split(size)[rank] for k, v in batch(i).items()} for i in range(5)]
    model = tiny_model()
    run = train(model, mine, objective, AdamW(model, lr=1e-2), 4, progress=False)
    return list(model.state_dict().values()), run.skipped


def test_a_bad_gradient_on_one_rank_is_skipped_on_all():
    clean, _ = train_weights([batch(i) for i in (0, 1, 3, 4)], micro_batches=2)
    for weights, skipped in run_ranks(poisoned_on_rank_one, 2):
        assert skipped == 1
        assert all(torch.equal(a, b) for a, b in zip(weights, clean.state_dict().values(), strict=True))


def collectives(rank, size):
    many = [torch.full((n,), float(rank + 1)) for n in (1, 7, 1000)] + [torch.full((2,), rank, dtype=torch.int64)]
    sum_over_ranks(many)
    return world_size(), is_main(), many, largest_over_ranks([float(rank), -float(rank)], torch.device("cpu"))


def test_sums_and_shared_decisions():
    for rank, (size, main, sums, largest) in enumerate(run_ranks(collectives, 3)):
        assert size == 3 and main == (rank == 0) and largest == [2.0, 0.0]
        assert all((t == 6).all() for t in sums[:3]) and (sums[3] == 3).all()


def stop_on_rank_one(rank, size):
    model = tiny_model()
    calls = iter(range(99))
    run = train(
        model, [batch(i) for i in range(50)], next_token, AdamW(model, lr=1e-2), None, progress=False,
        stop=lambda: rank == 1 and next(calls) == 3,
    )  # fmt: skip
    dist.barrier()
    return run.step, run.stopped_by


def test_a_stop_asked_on_one_rank_stops_all_at_the_same_step():
    assert run_ranks(stop_on_rank_one, 2) == [(3, "interrupt")] * 2


def test_alone_there_is_nothing_to_sum():
    tensor = torch.ones(2)
    sum_over_ranks([tensor])
    assert torch.equal(tensor, torch.ones(2)) and world_size() == 1 and is_main()
    assert largest_over_ranks([1.5], torch.device("cpu")) == [1.5]


def test_values_by_hand():
    """Loss w^2 x summed over rows: the mean gradient is 2 w mean(x)."""

    class Scalar(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(3.0))

    def objective(model, b):
        return Loss((model.w**2 * b["x"]).sum(), torch.tensor(float(len(b["x"]))), {"x": b["x"].sum()})

    model = Scalar()
    micro = [{"x": torch.tensor([1.0])}, {"x": torch.tensor([2.0, 6.0])}]
    vector, names = compute_gradients(model, objective, micro, math.inf)
    values = PendingValues(vector, names).read()
    assert model.w.grad is not None and float(model.w.grad) == 18.0 and values.grad_norm == 18.0
    assert values.loss == 27.0 and values.weight == 3.0 and values.metrics == {"x": 3.0}
    assert values.small_square == 36.0 and values.small_weight == 1.0 and values.finite


def test_noise_scale_of_a_known_distribution():
    """Gradients g + noise / sqrt(B) with |g|^2 = 4 and tr(Sigma) = 200: the scale is 50."""
    torch.manual_seed(0)
    scale = NoiseScale(decay=0.999)
    g = torch.zeros(100, dtype=torch.float64)
    g[0] = 2.0
    for _ in range(4000):
        parts = g + torch.randn(4, 100, dtype=torch.float64) * (200 / 100 / 8) ** 0.5  # micro-batches of 8
        scale.observe(float(parts[0].square().sum()), 8.0, float(parts.mean(0).square().sum()), 32.0)
    assert scale.tokens == pytest.approx(50, rel=0.1)


def test_noise_scale_learns_nothing_from_one_size_and_round_trips():
    scale = NoiseScale()
    scale.observe(1.0, 8.0, 1.0, 8.0)
    scale.observe(0.0, 0.0, 1.0, 8.0)
    assert scale.tokens is None
    scale.observe(3.0, 8.0, 1.0, 32.0)
    other = NoiseScale()
    other.load_state(scale.state())
    assert other.tokens == scale.tokens is not None
