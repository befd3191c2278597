import pytest
import torch

from groundup.kernels import layernorm, rmsnorm
from groundup.model import LayerNorm, RMSNorm
from groundup.model.norm import build_norm


def test_layers_apply_their_kernel_with_their_parameters():
    x = torch.randn(3, 8)
    rms, layer = RMSNorm(8, eps=0.1), LayerNorm(8, eps=0.1)
    with torch.no_grad():
        for parameter in (rms.weight, layer.weight, layer.bias):
            parameter.normal_()
    torch.testing.assert_close(rms(x), rmsnorm(x, rms.weight, 0.1))
    torch.testing.assert_close(layer(x), layernorm(x, layer.weight, layer.bias, 0.1))


@pytest.mark.parametrize(
    ("kind", "bias", "names"),
    [
        ("rms", False, {"weight"}),
        ("rms", True, {"weight"}),
        ("layer", False, {"weight"}),
        ("layer", True, {"weight", "bias"}),
    ],
)
def test_which_parameters_exist(kind, bias, names):
    assert {name for name, _ in build_norm(kind, 4, 1e-5, bias).named_parameters()} == names


def test_a_fresh_norm_has_unit_mean_square():
    for kind in ("rms", "layer"):
        y = build_norm(kind, 64, 1e-6)(5 * torch.randn(10, 64))
        torch.testing.assert_close(y.square().mean(-1), torch.ones(10), rtol=1e-4, atol=1e-4)


def test_an_unknown_kind_names_what_exists():
    with pytest.raises(ValueError, match="norm 'layr' is unknown; did you mean 'layer'"):
        build_norm("layr", 4, 1e-5)
