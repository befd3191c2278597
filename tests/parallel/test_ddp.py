"""N ranks train as one process that accumulates N micro-batches, to the bit, in all three stages."""

import pytest
import torch
from torch import nn

from groundup import optim
from groundup.parallel import DDP, replicate, sum_gradients_flat, sum_gradients_naive
from tests.distributed import RankFailed, run_ranks
from tests.parallel.counting import counting
from tests.parallel.training import Awkward, accumulated, backward, divide, tokens_of, weight_of
from tests.thorough import times

OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
    "ours": lambda model: optim.AdamW(model, lr=1e-2),
}


def overlapped(model):
    return DDP(model, bucket_bytes=300).finish


def with_function(function):
    def begin(model):
        replicate(model)
        return lambda: function(model)

    return begin


STAGES = {
    "overlapped": overlapped,
    "one bucket": lambda model: DDP(model).finish,
    "flat": with_function(sum_gradients_flat),
    "naive": with_function(sum_gradients_naive),
}


def trained(rank, size, stage, name, dtype, steps):
    model = Awkward(dtype, seed=rank)
    finish = STAGES[stage](model)
    optimizer = OPTIMIZERS[name](model)
    for step in range(steps):
        optimizer.zero_grad()
        backward(model, tokens_of(step, rank))
        finish()
        divide(model, weight_of(step, size))
        optimizer.step()
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def all_stages(rank, size, steps):
    """Every stage, optimizer and type that is asked for, in one group."""
    kinds = [("overlapped", name, dtype) for name in OPTIMIZERS for dtype in (torch.float32, torch.float64)]
    kinds += [(stage, "ours", torch.float32) for stage in STAGES if stage != "overlapped"]
    kinds += [("overlapped", "sgd", torch.bfloat16)]
    for stage, name, dtype in kinds:
        found = trained(rank, size, stage, name, dtype, steps)
        model = Awkward(dtype)
        expected = accumulated(model, OPTIMIZERS[name](model), size, steps)
        assert all(tensor.isfinite().all() for tensor in expected.values())
        for key, tensor in expected.items():
            assert torch.equal(found[key], tensor), f"{key} differs with {stage}, {name}, {dtype}"
        assert torch.equal(found["unused"], torch.ones(3).to(dtype)), "who has no gradient does not decay"
        assert not torch.equal(found["long.weight"], Awkward(dtype).long.weight), "the test trains too little"


@pytest.mark.parametrize(
    ("size", "steps"),
    [(2, times(20)), (4, 20)],
)
def test_ranks_are_micro_batches_to_the_bit(size, steps):
    run_ranks(all_stages, size, steps, timeout=600)


def accumulating(rank, size):
    """Three micro-batches per rank, of which the last communicates; each rank's own sum comes first."""
    models = [Awkward(torch.float64) for _ in range(size + 1)]
    ddp = DDP(models[rank], bucket_bytes=300)
    for step in range(3):
        with ddp.no_sync(), counting() as sent:
            for number in (0, 1):
                backward(models[rank], tokens_of(step, 10 * rank + number))
        assert not sent, "no_sync communicates"
        backward(models[rank], tokens_of(step, 10 * rank + 2))
        ddp.finish()
    whole = models[-1]
    for step in range(3):
        own = []
        for r in range(size):
            other = Awkward(torch.float64)
            if step:  # gradients are not zeroed here, so they go on from the sum that all have
                for p, q in zip(other.parameters(), whole.parameters(), strict=True):
                    p.grad = None if q.grad is None else q.grad.clone()
            for number in range(3):
                backward(other, tokens_of(step, 10 * r + number))
            own.append([p.grad for p in other.parameters()])
        for p, *parts in zip(whole.parameters(), *own, strict=True):
            there = [part for part in parts if part is not None]
            p.grad = sum(there[1:], there[0]) if there else None
    for p, q in zip(models[rank].parameters(), whole.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.equal(p.grad, q.grad)


def test_only_the_last_micro_batch_communicates():
    run_ranks(accumulating, 2)


def volume(rank, size):
    """Bytes that this rank sends per step, against 2 (N - 1) / N of the gradients' and their flags'."""
    found = []
    for begin in STAGES.values():
        model = nn.Sequential(nn.Linear(15, 16), nn.Linear(16, 15))
        finish = begin(model)
        with counting() as sent:
            model(torch.ones(2, 15)).sum().backward()
            finish()
        found.append(sent.total())
    return found, 4 * (15 * 16 + 16 + 16 * 15 + 15) + 4 * 4


@pytest.mark.parametrize("size", [2, 3, 4])
def test_what_is_sent_is_what_the_formula_says(size):
    results = run_ranks(volume, size)
    total = results[0][1]
    for each in zip(*(found for found, _ in results), strict=True):
        assert sum(each) == 2 * (size - 1) * total  # N ranks times 2 (N - 1) / N
        assert max(each) - min(each) <= 8 * 4 * size  # a bucket's pieces differ by one number at most


class TwoTypes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4).double()
        self.c = nn.Linear(4, 2)

    def forward(self, x):
        return self.c(self.b(self.a(x).double()).float())


def types_and_means(rank, size):
    torch.manual_seed(rank)
    model = TwoTypes()
    ddp = DDP(model, mean=True, bucket_bytes=1)  # each parameter a bucket of its own
    first = [p.detach().clone() for p in model.parameters()]
    model(torch.full((3, 4), float(rank))).square().sum().backward()
    ddp.finish()
    gradients = [p.grad.clone() for p in model.parameters()]

    model.zero_grad()
    ddp.remove()
    for r in range(size):
        model(torch.full((3, 4), float(r))).square().sum().backward()
    return first, gradients, [p.grad / size for p in model.parameters()]


def test_a_mean_over_ranks_of_two_types():
    results = run_ranks(types_and_means, 2)
    for first, gradients, expected in results:
        for a, b in zip(first, results[0][0], strict=True):
            assert torch.equal(a, b), "a rank did not start from rank 0's weights"
        for found, wanted in zip(gradients, expected, strict=True):
            assert found.dtype == wanted.dtype and torch.equal(found, wanted)


def backward_twice(rank, size):
    model = TwoTypes()
    DDP(model)
    for _ in range(2):  # with one bucket per type, all gradients of one are there after a backward pass
        model(torch.ones(3, 4)).sum().backward()


def test_a_gradient_after_its_bucket_left_is_refused():
    with pytest.raises(RankFailed, match="RuntimeError: a gradient of shape .* came after its bucket was sent"):
        run_ranks(backward_twice, 2)


def launched_early(rank, size):
    """Messages of the last layers leave before the first layer's gradient is made."""
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    ddp = DDP(model, bucket_bytes=4 * (8 * 8 + 8))
    with counting() as sent:
        seen = []
        model[0].weight.register_hook(lambda gradient: seen.append(sent.total()))
        model(torch.ones(1, 8)).sum().backward()
        before = sent.total()
        ddp.finish()
    return seen[0] / sent.total(), before / sent.total()


def test_communication_overlaps_with_the_backward_pass():
    """When the first layer's turn comes, three of four buckets are out; of three ranks two are added and on their way
    back, where a sum of two ranks makes both ways by itself."""
    assert run_ranks(launched_early, 2) == [(0.75, 1.0)] * 2
    for at_first_layer, at_the_end in run_ranks(launched_early, 3):
        assert 0.5 < at_first_layer < 0.7 and 0.8 < at_the_end < 0.9


def alone(rank, size):
    model = Awkward()
    ddp = DDP(model)
    backward(model, tokens_of(1, 0))
    expected = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    ddp.finish()
    for p, gradient in zip(model.parameters(), expected, strict=True):
        assert (p.grad is None) == (gradient is None) and (gradient is None or torch.equal(p.grad, gradient))
    DDP(nn.Linear(2, 2).requires_grad_(False)).finish()


def test_one_rank_is_no_change():
    run_ranks(alone, 1)
