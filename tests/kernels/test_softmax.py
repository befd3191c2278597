import pytest
import torch
from scipy import special

from groundup.kernels import log_softmax, softmax


def test_by_hand():
    x = torch.tensor([0.0, 0.0, torch.log(torch.tensor(2.0))])
    torch.testing.assert_close(softmax(x), torch.tensor([0.25, 0.25, 0.5]))


@pytest.mark.parametrize("shape", [(1,), (7,), (41, 129), (2, 3, 5), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_against_scipy(shape, dtype):
    x = (5 * torch.randn(shape)).to(dtype)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 8e-3}[dtype]
    for ours, theirs in ((softmax, special.softmax), (log_softmax, special.log_softmax)):
        expected = torch.from_numpy(theirs(x.double().numpy(), axis=-1)) if x.numel() else x.double()
        assert ours(x).dtype == dtype
        torch.testing.assert_close(ours(x).double(), expected, rtol=tolerance, atol=tolerance)


def test_huge_logits_do_not_overflow_and_a_shift_changes_nothing():
    x = torch.tensor([1e4, 1e4 - 1, -1e4])
    torch.testing.assert_close(softmax(x), softmax(torch.tensor([0.0, -1.0, -2e4])))
    assert log_softmax(x)[2].item() == pytest.approx(-20000.3133, abs=1e-2)


def test_strided_input_sums_to_one():
    x = torch.randn(6, 4).T[:, ::2]
    torch.testing.assert_close(softmax(x).sum(-1), torch.ones(4))
