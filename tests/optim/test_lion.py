"""Lion by hand, against the same in NumPy, and what a sign does not see."""

import numpy as np
import pytest
import torch

from groundup.optim import Lion


def parameter(values, dtype=torch.float64):
    return torch.nn.Parameter(torch.tensor(values, dtype=dtype))


def test_two_steps_by_hand():
    """b1 = 0.5, b2 = 0.75. Step 1: signs of 0.5 g; m = 0.25 g. Step 2: the old direction outweighs a small new one."""
    p = parameter([1.0, 1.0])
    optimizer = Lion([p], lr=0.1, betas=(0.5, 0.75), weight_decay=0.5)
    p.grad = torch.tensor([4.0, -4.0], dtype=torch.float64)
    optimizer.step()
    assert p.tolist() == pytest.approx([0.95 - 0.1, 0.95 + 0.1])
    assert optimizer.state[p]["momentum"].tolist() == [1.0, -1.0]
    p.grad = torch.tensor([-0.5, -0.5], dtype=torch.float64)
    optimizer.step()
    assert p.tolist() == pytest.approx([0.85 * 0.95 - 0.1, 1.05 * 0.95 + 0.1])
    assert optimizer.state[p]["momentum"].tolist() == [0.75 - 0.125, -0.75 - 0.125]


def test_equals_the_same_in_numpy_over_100_steps():
    rng = np.random.default_rng(0)
    theta, m = rng.normal(size=(5, 3)), np.zeros((5, 3))
    p = parameter(theta.tolist())
    optimizer = Lion([p], lr=0.01, betas=(0.9, 0.99), weight_decay=0.2)
    for _ in range(100):
        g = rng.normal(size=(5, 3))
        c = 0.9 * m + 0.1 * g
        theta = theta - 0.01 * (np.sign(c) + 0.2 * theta)
        m = 0.99 * m + 0.01 * g
        p.grad = torch.from_numpy(g)
        optimizer.step()
    np.testing.assert_allclose(p.detach().numpy(), theta, rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor", [1e-6, 1024.0])
def test_the_scale_of_all_gradients_changes_nothing(factor):
    def path(scale):
        generator = torch.Generator().manual_seed(0)
        p = parameter([[1.0, -2.0], [0.5, 3.0]])
        optimizer = Lion([p], lr=0.01)
        for _ in range(20):
            p.grad = scale * torch.randn(2, 2, generator=generator, dtype=torch.float64)
            optimizer.step()
        return p.detach()

    torch.testing.assert_close(path(factor), path(1.0), rtol=0, atol=1e-15)


def test_flipping_signs_flips_the_path():
    """Lion commutes with any change of signs, and with any order of the coordinates."""

    def path(signs):
        generator = torch.Generator().manual_seed(0)
        p = torch.nn.Parameter(signs * torch.tensor([1.0, -2.0, 3.0]))
        optimizer = Lion([p], lr=0.01, weight_decay=0.1)
        for _ in range(20):
            p.grad = signs * torch.randn(3, generator=generator)
            optimizer.step()
        return p.detach()

    signs = torch.tensor([1.0, -1.0, -1.0])
    assert torch.equal(path(signs), signs * path(torch.ones(3)))


def test_every_coordinate_moves_by_the_rate_and_a_zero_stays():
    p = parameter([1.0, 1.0, 1.0])
    p.grad = torch.tensor([1e-9, -1e9, 0.0], dtype=torch.float64)
    Lion([p], lr=0.125, weight_decay=0.0).step()
    assert p.tolist() == [0.875, 1.125, 1.0]


def test_a_nan_freezes_its_coordinate_without_showing_in_the_weights():
    """The sign of NaN is 0: why the guard looks at the gradient's norm and not at the weights."""
    p = parameter([1.0, 1.0])
    optimizer = Lion([p], lr=0.1, weight_decay=0.0)
    p.grad = torch.tensor([float("nan"), 1.0], dtype=torch.float64)
    optimizer.step()
    p.grad = torch.tensor([1.0, 1.0], dtype=torch.float64)
    optimizer.step()
    assert p[0].item() == 1.0 and p[1].item() == pytest.approx(0.8)
    assert optimizer.state[p]["momentum"][0].isnan()
