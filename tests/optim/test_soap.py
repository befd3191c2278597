"""SOAP: Adam where nothing is rotated, the same in NumPy, and what its basis brings."""

from typing import Any

import numpy as np
import pytest
import torch

from groundup.optim import SOAP, AdamW
from groundup.optim.soap import renew_bases, rotate, rotate_back

# The fast path's step count is a float32 scalar on the device, and so is the correction of the bias.
TOLERANCE = {False: 1e-9, True: 1e-7}

OPTIONS: dict[str, Any] = dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def trained(make, shape=(6, 4), steps=30, dtype=torch.float64, turn=lambda g: g):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator, dtype=dtype)
    p = torch.nn.Parameter(turn(start))
    optimizer = make([p])
    for _ in range(steps):
        p.grad = turn(torch.randn(shape, generator=generator, dtype=dtype))
        optimizer.step()
    return p.detach(), optimizer.state[p]


@pytest.mark.parametrize("foreach", [False, True])
def test_without_a_basis_it_is_adam(foreach):
    """No side short enough for a basis; and a basis that is never renewed, so the identity."""
    expected, _ = trained(lambda p: AdamW(p, fused=False, **OPTIONS))
    bare, state = trained(lambda p: SOAP(p, max_side=3, foreach=foreach, **OPTIONS))
    assert set(state) == {"exp_avg", "exp_avg_sq", "step"}
    torch.testing.assert_close(bare, expected, rtol=0, atol=TOLERANCE[foreach])


@pytest.mark.parametrize("foreach", [False, True])
def test_with_the_identity_as_basis_it_is_adam(foreach, monkeypatch):
    monkeypatch.setattr("groundup.optim.soap.renew_bases", lambda *args, **kwargs: None)
    expected, _ = trained(lambda p: AdamW(p, fused=False, **OPTIONS))
    result, state = trained(lambda p: SOAP(p, foreach=foreach, **OPTIONS))
    assert torch.equal(state["basis_left"], torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(result, expected, rtol=0, atol=TOLERANCE[foreach])


def numpy_soap(gradients, theta, frequency, lr, b1, b2, shampoo, eps, decay):
    """The paper's algorithm 3 in NumPy; step 1 is Adam's, then the first basis."""
    rows, cols = theta.shape
    left, right, ql, qr = np.zeros((rows, rows)), np.zeros((cols, cols)), np.eye(rows), np.eye(cols)
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * (ql.T @ g @ qr) ** 2
        inner = (ql.T @ m @ qr) / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        theta = theta - lr * decay * theta - lr * ql @ inner @ qr.T
        left, right = shampoo * left + (1 - shampoo) * g @ g.T, shampoo * right + (1 - shampoo) * g.T @ g
        if t == 1:
            ql, qr = np.linalg.eigh(left)[1][:, ::-1], np.linalg.eigh(right)[1][:, ::-1]
            v = (1 - b2) * (ql.T @ g @ qr) ** 2
        elif t % frequency == 0:
            ql, qr = np.linalg.qr(left @ ql)[0], np.linalg.qr(right @ qr)[0]
    return theta


@pytest.mark.parametrize("foreach", [False, True])
def test_equals_the_same_in_numpy(foreach):
    """A square matrix: where one side is longer, its eigenvectors of zero are any, and libraries differ in them."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=(5, 5))
    gradients = [rng.normal(size=(5, 5)) @ np.diag([3.0, 1.0, 0.5, 0.3, 0.1]) for _ in range(12)]
    p = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = SOAP([p], frequency=3, shampoo_beta=0.9, foreach=foreach, **OPTIONS)
    for g in gradients:
        p.grad = torch.from_numpy(g)
        optimizer.step()
    expected = numpy_soap(gradients, start, 3, 1e-2, 0.9, 0.95, 0.9, 1e-8, 0.1)
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=0, atol=TOLERANCE[foreach])


def test_rotating_there_and_back_is_nothing():
    state = {f"basis_{side}": torch.linalg.qr(torch.randn(n, n))[0] for side, n in (("left", 5), ("right", 3))}
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(rotate_back(rotate(x, state), state), x, rtol=1e-5, atol=1e-5)


def test_renewals_turn_to_the_eigenvectors_and_stay_orthogonal():
    gradient = torch.randn(6, 6) @ torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.25]))
    moments = gradient.mT @ gradient
    state = {"right": moments, "basis_right": torch.eye(6), "exp_avg_sq": torch.zeros(6, 6)}
    for _ in range(60):
        renew_bases(state, gradient, first=False, beta2=0.9)
    basis = state["basis_right"]
    torch.testing.assert_close(basis.mT @ basis, torch.eye(6), rtol=0, atol=1e-5)
    turned = basis.mT @ moments @ basis
    assert (turned - torch.diag(turned.diagonal())).abs().max() < 1e-3 * moments.diagonal().max()
    assert turned.diagonal().tolist() == sorted(turned.diagonal().tolist(), reverse=True)


def test_a_rotated_problem_is_the_same_problem_to_soap_and_not_to_adam():
    """With a basis found before, the path turns with the problem: U theta V, up to the first step."""
    u, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))

    def distance(make):
        plain, _ = trained(make, shape=(6, 6))
        turned, _ = trained(make, shape=(6, 6), turn=lambda x: u @ x @ v)
        return (turned - u @ plain @ v).norm() / plain.norm()

    soap = distance(lambda p: Warm(p, **OPTIONS))
    adam = distance(lambda p: AdamW(p, **OPTIONS))
    assert soap < 0.02 * adam


class Warm(SOAP):
    """SOAP whose first step is left out, as in the authors' code: it only makes the basis."""

    def step(self, *args, **kwargs):
        first = [p for group in self.param_groups for p in group["params"] if not self.state[p]]
        before = [p.detach().clone() for p in first]
        result = super().step(*args, **kwargs)
        for p, old in zip(first, before, strict=True):
            p.data.copy_(old)
        return result


def test_renewals_come_after_step_1_and_every_so_many(monkeypatch):
    renewed = []
    monkeypatch.setattr("groundup.optim.soap.renew_bases", lambda state, *_, **__: renewed.append(int(state["step"])))
    p = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = SOAP([p], frequency=4)
    skips = {0, 3, 4, 11}
    for call in range(18):
        p.grad = torch.randn(3, 3)
        optimizer.step(skip=torch.tensor(float(call in skips)))
    assert renewed == [1, 4, 8, 12]


def test_state_of_a_matrix_and_of_its_one_sided_kin():
    wide, vector = torch.nn.Parameter(torch.ones(3, 20)), torch.nn.Parameter(torch.ones(3))
    for p in (wide, vector):
        p.grad = torch.ones_like(p)
    optimizer = SOAP([wide, vector], max_side=10)
    optimizer.step()
    assert set(optimizer.state[wide]) == {"exp_avg", "exp_avg_sq", "step", "left", "basis_left"}
    assert set(optimizer.state[vector]) == {"exp_avg", "exp_avg_sq", "step"}


@pytest.mark.parametrize("options", [{"frequency": 0}, {"max_side": -1}, {"betas": (0.9, 1.0)}, {"shampoo_beta": 1.0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="SOAP"):
        SOAP([torch.nn.Parameter(torch.ones(1))], **options)
