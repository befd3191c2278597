"""Every rank gets rank 0's model."""

import torch
from torch import nn

from groundup.parallel import replicate
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
