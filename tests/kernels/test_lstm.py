"""The recurrence of the LSTM against torch's, with documents, padding and states."""

import pytest
import torch

from groundup.kernels import lstm


def inputs(seq, dtype=torch.float64):
    gates, weight = torch.randn(2, seq, 12, dtype=dtype), torch.randn(12, 3, dtype=dtype)
    return gates, weight, *torch.randn(2, 2, 3, dtype=dtype)


def test_by_hand():
    """Gates all 0: sigmoids are 1/2 and the candidate is 0, so the cell halves."""
    _, h, c = lstm(torch.zeros(1, 2, 4), torch.zeros(4, 1), torch.zeros(1, 1), torch.full((1, 1), 8.0))
    assert c.item() == 2.0 and h.item() == pytest.approx(0.5 * torch.tensor(2.0).tanh().item())


@pytest.mark.parametrize("seq", [1, 7, 41])
def test_against_torchs_lstm(seq):
    gates, weight, h, c = (x.requires_grad_() for x in inputs(seq))
    theirs = torch.nn.LSTM(12, 3, batch_first=True, bias=False, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(torch.eye(12))
    recurrent = {"weight_ih_l0": theirs.weight_ih_l0, "weight_hh_l0": weight}
    expected, (h_last, c_last) = torch.func.functional_call(theirs, recurrent, (gates, (h[None], c[None])))
    found = lstm(gates, weight, h, c)
    for ours, other in zip(found, (expected, h_last[0], c_last[0]), strict=True):
        torch.testing.assert_close(ours, other)
    leaves, upstream = (gates, weight, h, c), torch.randn_like(expected)
    for ours, other in zip(*(torch.autograd.grad(y, leaves, upstream) for y in (found[0], expected)), strict=True):
        torch.testing.assert_close(ours, other)


def test_documents_and_padding():
    gates, weight, h, c = inputs(9)
    resets, real = torch.zeros(2, 2, 9, dtype=torch.bool)
    resets[:, 4] = True
    real[0, :7], real[1] = True, False
    out, h_last, c_last = lstm(gates, weight, h, c, resets[:1].expand(2, -1) & real, real)
    first, *_ = lstm(gates[:1, :4], weight, h[:1], c[:1])
    second, *last = lstm(gates[:1, 4:7], weight, torch.zeros(1, 3).double(), torch.zeros(1, 3).double())
    torch.testing.assert_close(out[:1, :7], torch.cat([first, second], 1))
    torch.testing.assert_close([h_last[:1], c_last[:1]], last)
    assert torch.equal(h_last[1], h[1]) and torch.equal(c_last[1], c[1])
