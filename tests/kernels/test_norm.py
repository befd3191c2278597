import pytest
import torch
import torch.nn.functional as F

from groundup.kernels import layernorm, rmsnorm


def test_rmsnorm_by_hand():
    y = rmsnorm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), eps=0.0)
    torch.testing.assert_close(y, torch.tensor([[3 / 12.5**0.5, 8 / 12.5**0.5]]))


def test_layernorm_by_hand():
    y = layernorm(torch.tensor([[1.0, 3.0]]), torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0]), eps=0.0)
    torch.testing.assert_close(y, torch.tensor([[-1.0, 7.0]]))


FUNCTIONS = {
    "rms": (rmsnorm, lambda x, w, b, eps: F.rms_norm(x, x.shape[-1:], w, eps)),
    "layer": (layernorm, lambda x, w, b, eps: F.layer_norm(x, x.shape[-1:], w, b, eps)),
}


def with_gradients(function, x, weight, bias, upstream):
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y = function(*leaves, 1e-5)
    y.backward(upstream.to(y.dtype))
    return [y, *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 41), (129, 129), (0, 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_against_torch_forward_and_backward(kind, shape, dtype):
    ours, oracle = FUNCTIONS[kind]
    x, upstream = torch.randn(2, *shape).to(dtype)
    weight, bias = torch.randn(2, shape[-1]).to(dtype)
    if kind == "rms":
        got = with_gradients(lambda x, w, b, eps: ours(x, w, eps), x, weight, bias, upstream)
    else:
        got = with_gradients(ours, x, weight, bias, upstream)
    exact = with_gradients(oracle, x.double(), weight.double(), bias.double(), upstream)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2}[dtype]
    for a, b in zip(got, exact, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


def test_float32_weight_on_bfloat16_activations_gives_bfloat16():
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    assert rmsnorm(x, torch.ones(8)).dtype == torch.bfloat16
    assert layernorm(x, torch.ones(8), None).dtype == torch.bfloat16


def test_invariances():
    x, weight = torch.randn(5, 16), torch.randn(16)
    torch.testing.assert_close(rmsnorm(8 * x, weight, 0.0), rmsnorm(x, weight, 0.0))
    torch.testing.assert_close(
        layernorm(8 * x + 3, weight, None, 0.0), layernorm(x, weight, None, 0.0), atol=1e-4, rtol=1e-4
    )


def test_a_large_mean_does_not_cancel_the_variance():
    x = torch.tensor([[10000.0, 10001.0, 10002.0, 10003.0]])
    expected = torch.tensor([[-3.0, -1.0, 1.0, 3.0]]) / 5**0.5
    torch.testing.assert_close(layernorm(x, torch.ones(4), None, 0.0), expected)


def test_zeros_stay_zero_and_strides_do_not_matter():
    assert rmsnorm(torch.zeros(2, 4), torch.ones(4)).abs().max() == 0
    x, weight = torch.randn(8, 6).T, torch.randn(8)
    torch.testing.assert_close(rmsnorm(x, weight), rmsnorm(x.contiguous(), weight))
