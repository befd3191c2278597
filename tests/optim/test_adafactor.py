"""Adafactor: factored moments by hand, against torch, and what the update's limits do."""

import pytest
import torch

from groundup.optim import Adafactor
from tests.optim.stepping_cases import run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"eps": (1e-10, 1e-2), "beta2_decay": -0.5}])
def test_the_reference_equals_torch_to_the_bit_over_100_steps(dtype, options):
    ours, _ = run(lambda p: Adafactor(p, 1e-2, weight_decay=0.1, foreach=False, **options), dtype)
    theirs, _ = run(lambda p: torch.optim.Adafactor(p, 1e-2, weight_decay=0.1, foreach=False, **options), dtype)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_the_stacked_path_equals_torch_to_rounding():
    ours, _ = run(lambda p: Adafactor(p, 1e-2, weight_decay=0.1))
    theirs, _ = run(lambda p: torch.optim.Adafactor(p, 1e-2, weight_decay=0.1))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("foreach", [False, True])
def test_a_rank_one_gradient_is_known_exactly(foreach):
    """|g| = outer(rows, columns), so R C / mean(R) is g^2 and the update is its signs, of RMS 1: not clipped."""
    gradient = torch.outer(torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 4.0])).double()
    p = torch.nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))
    p.grad = gradient
    optimizer = Adafactor([p], lr=0.1, relative_step=False, foreach=foreach)
    optimizer.step()
    torch.testing.assert_close(p.data, -0.1 * gradient.sign(), rtol=1e-12, atol=0)
    assert optimizer.state[p]["row_mean"].flatten().tolist() == pytest.approx([8.125, 32.5, 73.125])
    assert optimizer.state[p]["column_mean"].flatten().tolist() == pytest.approx([14 / 12, 14 * 16 / 3])


def test_moments_of_a_known_matrix_by_hand():
    p = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    p.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    Adafactor([p], lr=0.1, relative_step=False, clip=100.0).step()
    rows, columns = torch.tensor([[2.5], [12.5]]), torch.tensor([[5.0, 10.0]])
    expected = 1 - 0.1 * p.grad / (rows @ columns / 7.5).sqrt()
    torch.testing.assert_close(p.data, expected.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("foreach", [False, True])
def test_a_relative_step_is_a_share_of_the_tensor_and_falls(foreach):
    """A matrix of RMS 2 moves by 2 * min(lr, 1 / sqrt(t)) an element; one of zeros by eps2 instead of 2."""

    def moves(value, lr, steps):
        p = torch.nn.Parameter(torch.full((2, 2), value, dtype=torch.float64))
        optimizer = Adafactor([p], lr=lr, foreach=foreach)
        sizes = []
        for _ in range(steps):
            before = p.detach().clone()
            p.grad = torch.ones(2, 2, dtype=torch.float64)
            optimizer.step()
            sizes.append(((before - p) / max(1e-3, before[0, 0].item())).mean().item())
        return sizes

    assert moves(2.0, 0.01, 3) == pytest.approx([0.01] * 3)
    assert moves(2.0, 0.8, 3) == pytest.approx([0.8, 2**-0.5, 3**-0.5])
    assert moves(0.0, 0.01, 1) == pytest.approx([0.01])


@pytest.mark.parametrize("foreach", [False, True])
def test_a_leap_is_clipped(foreach):
    """After small gradients a large one would move by far more than the rate; its RMS is held at `clip`."""

    def last(clip):
        p = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
        optimizer = Adafactor([p], lr=1.0, relative_step=False, clip=clip, foreach=foreach)
        for step in range(20):
            p.grad = torch.full((4,), 100.0 if step == 19 else 1e-3, dtype=torch.float64)
            before = p.detach().clone()
            optimizer.step()
        return (before - p).abs().mean().item()

    assert last(1.0) == pytest.approx(1.0) and last(0.5) == pytest.approx(0.5)
    assert last(1e9) > 3.0


def test_state_is_a_row_and_a_column():
    p = torch.nn.Parameter(torch.ones(300, 500))
    p.grad = torch.ones(300, 500)
    optimizer = Adafactor([p])
    optimizer.step()
    assert sum(t.numel() for t in optimizer.state[p].values()) == 300 + 500 + 1


def test_experts_are_matrices_of_their_own():
    """Moments of a stack are those of its matrices; only the limit on the RMS is of the whole tensor."""
    gradient = torch.randn(3, 4, 5, dtype=torch.float64)
    whole = torch.nn.Parameter(torch.zeros(3, 4, 5, dtype=torch.float64))
    whole.grad = gradient
    Adafactor([whole], lr=0.1, relative_step=False, clip=1e9).step()
    for i in range(3):
        p = torch.nn.Parameter(torch.zeros(4, 5, dtype=torch.float64))
        p.grad = gradient[i]
        Adafactor([p], lr=0.1, relative_step=False, clip=1e9).step()
        torch.testing.assert_close(p.data, whole.data[i], rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", [{"clip": 0.0}, {"beta2_decay": 0.1}, {"eps": (None, -1.0)}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="Adafactor"):
        Adafactor([torch.nn.Parameter(torch.ones(1))], **options)
