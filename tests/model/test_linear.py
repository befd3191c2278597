import pytest
import torch

from groundup.model import Embedding, Linear
from groundup.model.linear import truncated_normal_


def test_by_hand():
    linear = Linear(2, 1, bias=True)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[2.0, 3.0]]))
        linear.bias.fill_(1.0)
    assert linear(torch.tensor([10.0, 100.0])).item() == 321


@pytest.mark.parametrize("width", [64, 256, 1024])
def test_output_variance_is_independent_of_width(width):
    linear = Linear(width, 500)
    variance = linear(torch.randn(200, width)).var().item()
    assert variance == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize("width", [16, 400])
def test_weights_stop_at_three_standard_deviations(width):
    """Three of them, not the interval from -3 to 3; the mass outside is 0.27 %, so 1e5 draws reach the edge."""
    weight = Linear(width, 100_000 // width).weight
    std = width**-0.5
    assert 2.8 * std < weight.abs().max().item() <= 3 * std * 1.0001
    assert weight.std().item() == pytest.approx(0.9866 * std, rel=0.02)


def test_master_weights_stay_float32_under_bfloat16_activations():
    linear = Linear(4, 3, bias=True)
    y = linear(torch.ones(2, 4, dtype=torch.bfloat16))
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert linear.weight.dtype == linear.weight.grad.dtype == torch.float32
    torch.testing.assert_close(linear.weight.grad, torch.full((3, 4), 2.0))


def test_bias_is_off_by_default_and_starts_at_zero():
    assert Linear(2, 2).bias is None and [n for n, _ in Linear(2, 2).named_parameters()] == ["weight"]
    assert Linear(2, 2, bias=True).bias.abs().max() == 0


def test_a_seeded_draw_ignores_and_keeps_the_global_generator():
    state, weights = torch.get_rng_state(), []
    for _ in range(2):
        weight = torch.empty(5, 5)
        truncated_normal_(weight, 1.0, torch.Generator().manual_seed(1))
        weights.append(weight)
    assert torch.equal(*weights) and torch.equal(torch.get_rng_state(), state)


def test_embedding_is_a_row_per_token():
    table = Embedding(5, 3)
    torch.testing.assert_close(table(torch.tensor([[4, 0]])), table.weight[[4, 0]][None])
    with pytest.raises(IndexError):
        table(torch.tensor([5]))


def test_empty_batch():
    assert Linear(4, 3)(torch.zeros(0, 7, 4)).shape == (0, 7, 3)


@pytest.mark.parametrize("bias", [False, True])
def test_fp16_on_a_cpu_adds_up_in_float32_and_rounds_once(bias):
    """Against sums in double precision: half a unit of fp16 (2^-11) from rounding, and one more for the bias."""
    torch.manual_seed(0)
    linear = Linear(300, 40, bias)
    x = torch.randn(2, 7, 300).half().requires_grad_()
    g = torch.randn(2, 7, 40).half()
    y = linear(x)
    d_x, d_w = torch.autograd.grad(y, (x, linear.weight), g)
    exact, w = x.double(), linear.weight.half().double()
    assert y.dtype == d_x.dtype == torch.float16 and d_w.dtype == torch.float32
    torch.testing.assert_close(y.double(), exact @ w.T, rtol=2**-10, atol=1e-4)
    torch.testing.assert_close(d_x.double(), g.double() @ w, rtol=2**-10, atol=1e-4)
    expected = g.double().flatten(0, 1).T @ exact.flatten(0, 1)
    torch.testing.assert_close(d_w.double(), expected, rtol=2**-10, atol=1e-4)


def test_fp16_gradients_of_a_weight_can_overflow_as_on_a_gpu():
    linear = Linear(2, 3)
    y = linear(torch.full((40, 2), 100.0).half())
    y.backward(torch.full_like(y, 100.0))
    assert linear.weight.grad is not None and linear.weight.grad.isinf().all()
