"""Every rank gets rank 0's model, or hears whose model is another."""

import pytest
import torch
from torch import nn

from groundup.parallel import check_alike, replicate
from tests.distributed import run_ranks
from tests.parallel.training import Awkward


def replicated(rank, size):
    model = Awkward(seed=rank)
    strided = nn.Parameter(torch.full((2, 3), float(rank)).T)
    model.register_parameter("strided", strided)
    replicate(model)
    expected = Awkward(seed=0).state_dict()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.items())
    assert torch.equal(strided, torch.zeros(3, 2)) and model.head.weight is model.embed.weight


def test_all_have_the_weights_and_buffers_of_the_first():
    run_ranks(replicated, 3)


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
