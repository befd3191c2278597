"""A batch on its way to the device: the same tensors under the same names."""

import pytest
import torch

from groundup.data import to_device


def batch():
    return {"tokens": torch.arange(6).view(2, 3), "mask": torch.ones(2, 3)}


def test_on_a_cpu_nothing_is_copied():
    given = batch()
    moved = to_device(given, torch.device("cpu"))
    assert moved is not given and moved.keys() == given.keys()
    assert all(moved[name].data_ptr() == given[name].data_ptr() for name in given)


def test_every_tensor_moves_and_keeps_its_kind():
    moved = to_device(batch(), torch.device("meta"))
    assert {name: (t.device.type, t.dtype, tuple(t.shape)) for name, t in moved.items()} == {
        "tokens": ("meta", torch.int64, (2, 3)),
        "mask": ("meta", torch.float32, (2, 3)),
    }


@pytest.mark.gpu
def test_the_way_to_a_gpu_and_back():
    moved = to_device(batch(), torch.device("cuda"))
    assert all(t.is_cuda for t in moved.values())
    assert all(torch.equal(moved[name].cpu(), tensor) for name, tensor in batch().items())
