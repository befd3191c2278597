"""The short convolution against torch's, and across what starts afresh."""

import pytest
import torch
import torch.nn.functional as F

from groundup.kernels import causal_convolution


def inputs(seq, kernel=4, dtype=torch.float64):
    x, before = torch.randn(2, seq, 3, dtype=dtype), torch.randn(2, kernel - 1, 3, dtype=dtype)
    return x, torch.randn(3, kernel, dtype=dtype), torch.randn(3, dtype=dtype), before


def test_by_hand():
    """Weights 1, 10, 100, the last for the token itself; 7 and 8 came before."""
    x, before = torch.tensor([1.0, 2.0]).view(1, 2, 1), torch.tensor([7.0, 8.0]).view(1, 2, 1)
    y = causal_convolution(x, torch.tensor([[1.0, 10.0, 100.0]]), torch.tensor([0.5]), before)
    assert y.flatten().tolist() == [7 + 80 + 100 + 0.5, 8 + 10 + 200 + 0.5]


@pytest.mark.parametrize("seq", [1, 7, 41, 129])
@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_against_torchs_convolution(seq, kernel):
    leaves = [x.requires_grad_() for x in inputs(seq, kernel)]
    x, weight, bias, before = leaves
    whole = torch.cat([before, x], 1).transpose(1, 2)
    expected = F.conv1d(whole, weight[:, None], bias, groups=3).transpose(1, 2)
    found, upstream = causal_convolution(x, weight, bias, before), torch.randn_like(expected)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(*(torch.autograd.grad(y, leaves, upstream) for y in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_documents_in_a_row_give_what_each_gives_alone():
    x, weight, bias, before = inputs(12)
    resets = torch.zeros(2, 12, dtype=torch.bool)
    resets[:, [2, 3, 9]] = True
    nothing = torch.zeros_like(before)
    alone = [
        causal_convolution(x[:, a:b], weight, bias, before if a == 0 else nothing)
        for a, b in ((0, 2), (2, 3), (3, 9), (9, 12))
    ]
    torch.testing.assert_close(causal_convolution(x, weight, bias, before, resets), torch.cat(alone, 1))


def test_half_precision_is_rounded_once():
    x, weight, _, before = (y.bfloat16() for y in inputs(41, dtype=torch.float32))
    exact = causal_convolution(x.float(), weight.float(), None, before.float())
    assert torch.equal(causal_convolution(x, weight, None, before), exact.bfloat16())
