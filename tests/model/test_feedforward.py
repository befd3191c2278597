import pytest
import torch
import torch.nn.functional as F

from groundup.kernels import ACTIVATIONS
from groundup.model import MLP, MLPConfig
from groundup.presets import gated_d_ff


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_by_hand():
    """Two channels in, two hidden, ReLU: down((2, -1) -> (2, 0)) = 2 * 10 + 0 * 100."""
    mlp = MLP(MLPConfig(2, gated=False, activation="relu"), 2)
    with torch.no_grad():
        mlp.up.weight.copy_(torch.eye(2))
        mlp.down.weight.copy_(torch.tensor([[10.0, 100.0], [0.0, 0.0]]))
    torch.testing.assert_close(mlp(torch.tensor([2.0, -1.0])), torch.tensor([20.0, 0.0]))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_against_the_formula(name, bias, gated):
    mlp, x = MLP(MLPConfig(12, gated, name, bias), 8), torch.randn(2, 3, 8)
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.normal_()
    apply = lambda m, x: F.linear(x, m.weight, m.bias)  # noqa: E731
    act, up = ACTIVATIONS[name], apply(mlp.up, x)
    expected = apply(mlp.down, act(apply(mlp.gate, x)) * up if gated else act(up))
    torch.testing.assert_close(mlp(x), expected)


def test_biases_are_what_the_switch_adds():
    for gated, extra in ((True, 12 + 12 + 8), (False, 12 + 8)):
        with_bias, without = (MLP(MLPConfig(12, gated, bias=b), 8) for b in (True, False))
        assert count(with_bias) - count(without) == extra


@pytest.mark.parametrize("d_model", [64, 320, 512, 768, 1600, 4096])
def test_eight_thirds_costs_what_four_without_a_gate_costs(d_model):
    with torch.device("meta"):
        gated = count(MLP(MLPConfig(gated_d_ff(d_model)), d_model))
        plain = count(MLP(MLPConfig(4 * d_model, gated=False), d_model))
    assert 0 <= gated - plain < 3 * 64 * d_model
    assert gated_d_ff(d_model) % 64 == 0


@pytest.mark.usefixtures("unchecked")
def test_errors():
    with pytest.raises(ValueError, match="activation 'swish' is unknown; expected one of: gelu, gelu_tanh"):
        MLPConfig(8, activation="swish")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="d_ff=0"):
        MLPConfig(0)
