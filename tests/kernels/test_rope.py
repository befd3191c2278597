import math

import pytest
import torch

from groundup.kernels import apply_rope, rope_frequencies


def test_by_hand():
    """Two channels are one pair at frequency 1: position 1 turns (1, 0) by one radian."""
    x = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    y = apply_rope(x, torch.tensor([[1]]))
    torch.testing.assert_close(y.flatten(), torch.tensor([math.cos(1), math.sin(1)]))


def test_frequencies_by_hand():
    torch.testing.assert_close(rope_frequencies(4, 10_000.0), torch.tensor([1.0, 0.01]))


def test_against_complex_multiplication():
    """An oracle that knows nothing of sines: pairs as complex numbers, times e^{i p f}."""
    x, positions = torch.randn(2, 5, 3, 8, dtype=torch.float64), torch.randint(0, 50, (2, 5))
    frequencies = 500.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    pairs = torch.complex(x[..., :4], x[..., 4:])
    turned = pairs * torch.exp(1j * positions[..., None, None] * frequencies)
    expected = torch.cat([turned.real, turned.imag], -1)
    torch.testing.assert_close(apply_rope(x, positions, 500.0), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [1, 17, 1000])
def test_products_depend_on_distance_only(shift):
    q, k = torch.randn(2, 1, 1, 1, 64)
    at = lambda x, p: apply_rope(x, torch.tensor([[p]]))  # noqa: E731
    near = (at(q, 9) * at(k, 4)).sum()
    far = (at(q, 9 + shift) * at(k, 4 + shift)).sum()
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-3)


def test_rotation_keeps_length_and_position_zero_changes_nothing():
    x = torch.randn(1, 4, 2, 16)
    y = apply_rope(x, torch.arange(4)[None])
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(y[:, 0], x[:, 0])


def test_bfloat16_positions_are_still_exact():
    """257 is no bfloat16 number: angles in bfloat16 would make it 256."""
    x = torch.randn(1, 2, 1, 8)
    y = apply_rope(x.bfloat16(), torch.tensor([[257, 100_003]]))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), apply_rope(x, torch.tensor([[257, 100_003]])), rtol=2e-2, atol=2e-2)


def test_the_gradient_is_the_inverse_rotation():
    x = torch.randn(1, 3, 2, 8, requires_grad=True)
    positions, upstream = torch.tensor([[3, 1, 7]]), torch.randn(1, 3, 2, 8)
    apply_rope(x, positions).backward(upstream)
    torch.testing.assert_close(x.grad, apply_rope(upstream, -positions))


def test_empty_batch():
    assert apply_rope(torch.zeros(0, 3, 2, 8), torch.zeros(0, 3, dtype=torch.long)).shape == (0, 3, 2, 8)
