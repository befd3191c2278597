import math

import pytest
import torch

from groundup.kernels import ACTIVATIONS, activate, gated

SIGMOID = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
FORMULAS = {
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / 2**0.5)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "silu": lambda x: x * SIGMOID(x),
    "sigmoid": SIGMOID,
    "relu2": lambda x: max(x, 0.0) ** 2,
    "identity": lambda x: x,
}


def test_every_activation_has_a_formula_here():
    assert FORMULAS.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("name", FORMULAS)
def test_forward_and_backward_against_the_formula(name):
    points = [-7.3, -1.0, -0.2, 0.1, 0.9, 6.5]
    x = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    y = activate(x, name)
    y.sum().backward()
    formula, step = FORMULAS[name], 1e-6
    expected = torch.tensor([formula(p) for p in points], dtype=torch.float64)
    slope = torch.tensor([(formula(p + step) - formula(p - step)) / (2 * step) for p in points])
    torch.testing.assert_close(y.detach(), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(x.grad, slope.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 41, 129), (0, 5)])
def test_gated_is_activation_times_up(name, shape):
    gate, up = torch.randn(2, *shape)
    torch.testing.assert_close(gated(gate, up, name), ACTIVATIONS[name](gate) * up)
    assert gated(gate.bfloat16(), up.bfloat16(), name).dtype == torch.bfloat16


def test_gradients_of_the_gate():
    gate, up = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True).unbind()
    assert torch.autograd.gradcheck(lambda g, u: gated(g, u, "silu"), (gate, up))


def test_an_unknown_activation_names_the_nearest():
    with pytest.raises(ValueError, match="activation 'gelu_tan' is unknown; did you mean 'gelu_tanh'"):
        activate(torch.zeros(1), "gelu_tan")
