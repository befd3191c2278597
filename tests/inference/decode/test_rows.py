"""What is done to one row, against numpy and torch."""

import numpy as np
import pytest
import torch

from groundup import kernels
from groundup.inference.decode import program, rows
from groundup.inference.decode.team import compiled

X = torch.linspace(-9, 9, 257)


@compiled
def exponentials(x):
    out = np.empty_like(x)
    for i in range(x.size):
        out[i] = rows.exponential(x[i])
    return out


def test_the_exponential_is_right_to_two_units_in_the_last_place():
    x = np.linspace(-80, 80, 4001, dtype=np.float32)
    assert np.abs(exponentials(x) / np.exp(x.astype(np.float64)) - 1).max() < 2 * 2.0**-23


@pytest.mark.parametrize("name", program.ACTIVATIONS)
def test_activations_are_the_models(name):
    found = X.clone()
    rows.activate(found.numpy(), program.ACTIVATIONS.index(name))
    torch.testing.assert_close(found, kernels.activate(X, name), rtol=2e-6, atol=1e-6)


def test_bfloat16_is_rounded_to_nearest_even():
    x = torch.cat([torch.randn(63, generator=torch.Generator().manual_seed(0)), torch.tensor([1 + 2.0**-8])])
    out = torch.empty(64, dtype=torch.bfloat16)
    rows.round_bf16(x.numpy(), out.data_ptr())
    assert torch.equal(out, x.bfloat16())


def test_int16_is_the_nearest_multiple_of_the_scale_with_sums_by_group():
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    out, sums = torch.empty(64, dtype=torch.int16), torch.empty(2)
    scale = rows.round_int16(x.numpy(), out.data_ptr(), sums.data_ptr())
    assert out.abs().max() == 32767
    assert (out.float() * scale - x).abs().max() <= 0.51 * scale
    assert torch.equal(sums, out.long().view(2, 32).sum(1).float())


def test_a_row_of_zeros_has_no_scale():
    out, sums = torch.ones(32, dtype=torch.int16), torch.ones(1)
    assert rows.round_int16(torch.zeros(32).numpy(), out.data_ptr(), sums.data_ptr()) == 0
    assert out.eq(0).all() and sums.eq(0).all()
