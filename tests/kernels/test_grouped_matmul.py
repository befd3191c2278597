"""A product per expert, against loops and against one product with everything else set to zero."""

import pytest
import torch

from groundup.kernels import grouped_matmul


def test_by_hand():
    """Rows 1 and 2 belong to expert 0 (times 10), none to expert 1, row 3 to expert 2 (times 1000), row 4 to nobody."""
    rows = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    weights = torch.tensor([10.0, 100.0, 1000.0]).view(3, 1, 1)
    out = grouped_matmul(rows, weights, torch.tensor([2, 2, 3]))
    assert out.flatten().tolist() == [10.0, 20.0, 3000.0, 0.0]


@pytest.mark.parametrize("counts", [[3, 0, 4], [0, 0, 0], [7], [0, 41, 1, 129]])
@pytest.mark.parametrize("behind", [0, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_forward_and_backward_equal_one_product_with_the_others_masked(counts, behind, dtype):
    experts, n = len(counts), sum(counts) + behind
    rows = torch.randn(n, 6, dtype=torch.float64).to(dtype).requires_grad_()
    weights = torch.randn(experts, 5, 6, dtype=torch.float64).to(dtype).requires_grad_()
    owner = torch.cat([torch.full((count,), e) for e, count in enumerate([*counts, behind])])
    mask = (owner[:, None] == torch.arange(experts)).to(torch.float64)
    out = grouped_matmul(rows, weights, torch.tensor(counts).cumsum(0))
    exact = torch.einsum("nd,eod,ne->no", rows.double(), weights.double(), mask)
    assert out.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)
    probe = torch.randn(n, 5, dtype=torch.float64)
    found = torch.autograd.grad((out * probe.to(dtype)).sum(), [rows, weights])
    expected = torch.autograd.grad((exact * probe).sum(), [rows, weights])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=10 * tolerance, atol=20 * tolerance)


def test_gradients_by_finite_differences():
    rows, weights = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 3), (2, 4, 3)))
    ends = torch.tensor([2, 4])
    assert torch.autograd.gradcheck(lambda r, w: grouped_matmul(r, w, ends), (rows, weights))


def test_without_numbers_the_shape_is_the_same():
    out = grouped_matmul(
        torch.empty(7, 3, device="meta"), torch.empty(4, 5, 3, device="meta"), torch.ones(4, device="meta").long()
    )
    assert out.shape == (7, 5) and out.is_meta
