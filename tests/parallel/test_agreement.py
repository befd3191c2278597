"""What ranks must have alike: models before they are cut, and the bits of copies in a run."""

import random

import pytest
import torch
from torch import nn

from groundup.parallel import check_alike, check_copies
from tests.distributed import run_ranks
from tests.parallel.training import Awkward


def other_models(rank, size):
    def fault(change):
        model = Awkward()
        if rank == 1:
            change(model)
        with pytest.raises(ValueError) as caught:
            check_alike(model)
        return str(caught.value)

    return [
        fault(lambda model: setattr(model, "out", nn.Linear(8, 6))),
        fault(lambda model: setattr(model, "frozen", nn.Linear(9, 9))),
        fault(lambda model: model.register_parameter("extra", nn.Parameter(torch.zeros(1)))),
        fault(lambda model: model.register_buffer("scale", torch.zeros(1).double())),
    ]


def test_a_model_that_differs_is_refused_on_every_rank():
    results = run_ranks(other_models, 2)
    assert results[0] == results[1]
    begin = "models differ between ranks: rank 0 has "
    assert results[0] == [
        f"{begin}parameter out.weight of shape (6, 9) and float32, "
        "where rank 1 has parameter out.weight of shape (6, 8) and float32",
        f"{begin}parameter frozen.weight of shape (9, 9) and float32 without gradient, "
        "where rank 1 has parameter frozen.weight of shape (9, 9) and float32",
        f"{begin}parameter embed.weight of shape (11, 6) and float32, "
        "where rank 1 has parameter extra of shape (1,) and float32",
        f"{begin}buffer scale of shape (1,) and float32 without gradient, "
        "where rank 1 has buffer scale of shape (1,) and float64 without gradient",
    ]


def other_values(rank, size):
    model = Awkward()
    check_alike(model, values=True)
    if rank == 2:
        model.out.weight.data[1, 2] += 1e-3
    check_alike(model)
    with pytest.raises(ValueError, match=r"rank 2 has other values in out\.weight than rank 0"):
        check_alike(model, values=True)


def test_values_count_where_asked():
    run_ranks(other_values, 3)


def flip(tensor, chance):
    """One bit of one number."""
    flat = tensor.view(-1).view(torch.uint8)
    flat[chance.randrange(len(flat))] ^= 1 << chance.randrange(8)


def flipped(rank, size, trials):
    """How often a bit that one rank lost was laid at its door."""
    chance, named = random.Random(0), 0
    tensors = {
        "weight": torch.randn(5, 7),
        "exp_avg": torch.randn(33).bfloat16(),
        "step": torch.tensor(3.0),
        "counts": torch.arange(9),
        "seen": torch.zeros(4, dtype=torch.bool),
        "none": torch.zeros(0),
    }
    check_copies(tensors)
    for _ in range(trials):
        name, who = chance.choice(["weight", "exp_avg", "step", "counts"]), chance.randrange(size)
        copies = {key: tensor.clone() for key, tensor in tensors.items()}
        (flip(copies[name], chance) if rank == who else flip(tensors[name].clone(), chance))
        with pytest.raises(RuntimeError) as caught:
            check_copies(copies)
        whose = (
            f"rank {who} has other bits than the others in {name},"
            if size > 2
            else f"ranks have different bits in {name},"
        )
        named += str(caught.value).startswith(whose)
    return named


@pytest.mark.parametrize("size", [2, 3])
def test_every_flipped_bit_is_found_and_named(size):
    assert run_ranks(flipped, size, 300) == [300] * size


def many_differ(rank, size):
    with pytest.raises(RuntimeError, match="rank 0, 3 has other bits than the others in a, b, c and 1 more"):
        check_copies({name: torch.tensor(float(rank in (0, 3))) for name in "abcd"})


def test_all_ranks_and_few_names_are_said():
    run_ranks(many_differ, 5)
