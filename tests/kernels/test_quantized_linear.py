"""Linear layers on operands of eight bits against an emulation in double precision that shares no code with them."""

import pytest
import torch

from groundup.kernels.quantize import E4M3, E5M2, Quantized, quantize_tensor
from groundup.kernels.quantized_linear import native, quantized_linear, scaled_matmul


def to_grid(x, bits, least, largest):
    """The nearest numbers of a float8 format, in double precision."""
    exponent = (torch.frexp(x).exponent - 1).clamp(min=least)
    unit = torch.pow(2.0, (exponent - bits).double())
    return ((x / unit).round() * unit).clamp(-largest, largest)


def e4m3(x):
    return to_grid(x, 3, -6, 448.0)


def e5m2(x):
    return to_grid(x, 2, -14, 57_344.0)


def per_tensor(x, grid, largest):
    scale = (x.abs().max().float() / largest).double()  # scales are float32 numbers, as the hardware reads them
    return grid((x.float() / scale.float()).double()) * scale


def per_block(x):
    """Along the last axis, an incomplete block at the end."""
    done = []
    for block in x.split(32, -1):
        amax = block.abs().amax(-1, keepdim=True)
        scale = torch.pow(2.0, amax.log2().floor() - 8)
        done.append(e4m3(block / scale) * scale)
    return torch.cat(done, -1)


def per_row(x):
    """Steps are found in float32: bfloat16 numbers are often right between two."""
    amax = x.abs().amax(-1, keepdim=True).float()
    return (x.float() * (torch.tensor(127.0) / amax)).round().double() * (amax.double() / 127)


def emulated(x, w, g, products):
    x, w, g = (t.detach().double() for t in (x, w, g))
    if products == "int8":
        blocks = zip(g.split(256), x.split(256), strict=True)
        d_weight = sum(per_row(of_g.T) @ per_row(of_x.T).T for of_g, of_x in blocks)
        return per_row(x) @ per_row(w).T, per_row(g) @ per_row(w.T).T, d_weight
    if products == "fp8":
        x, w, g = per_tensor(x, e4m3, 448.0), per_tensor(w, e4m3, 448.0), per_tensor(g, e5m2, 57_344.0)
        return x @ w.T, g @ w, g.T @ x
    y = per_block(x) @ per_block(w).T
    return y, per_block(g) @ per_block(w.T).T, per_block(g.T) @ per_block(x.T).T


def inputs(rows, d_in, d_out, dtype):
    torch.manual_seed(rows + d_in)
    x = (torch.randn(rows, d_in) * torch.rand(d_in).mul(4).exp()).to(dtype).requires_grad_()
    w = (torch.randn(d_out, d_in) * d_in**-0.5).requires_grad_()
    return x, w, (torch.randn(rows, d_out) * 1e-3).to(dtype)


@pytest.mark.parametrize("products", ["fp8", "mxfp8", "int8"])
@pytest.mark.parametrize(("rows", "d_in", "d_out"), [(1, 16, 32), (7, 32, 48), (41, 80, 16), (300, 64, 96)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_both_gradients_are_those_of_the_emulation(products, rows, d_in, d_out, dtype):
    x, w, g = inputs(rows, d_in, d_out, dtype)
    y = quantized_linear(x, w, products)
    found = (y, *torch.autograd.grad(y, (x, w), g))
    expected = emulated(x, w, g, products)
    for name, got, want, kept in zip(("y", "dx", "dw"), found, expected, (x, x, w), strict=True):
        assert got.dtype == kept.dtype, name
        tolerance = (1e-5 if got.dtype == torch.float32 else 4e-3) * want.abs().max()
        assert (got.double() - want).abs().max() <= tolerance, name
    assert not torch.allclose(y.float(), (x.float() @ w.T), rtol=1e-4)  # it is no plain product


@pytest.mark.parametrize("products", ["fp8", "mxfp8", "int8"])
def test_axes_in_front_and_a_frozen_operand(products):
    x, w, g = inputs(24, 32, 16, torch.bfloat16)
    folded = quantized_linear(x.view(2, 3, 4, 32), w, products)
    assert folded.shape == (2, 3, 4, 16) and torch.equal(folded.flatten(0, -2), quantized_linear(x, w, products))
    empty = quantized_linear(x[:0], w, products)
    assert empty.shape == (0, 16) and torch.equal(torch.autograd.grad(empty.sum(), w)[0], torch.zeros_like(w))
    frozen = quantized_linear(x, w.detach(), products)
    assert torch.equal(*(torch.autograd.grad(out, x, g)[0] for out in (frozen, quantized_linear(x, w, products))))
    constant = quantized_linear(x.detach(), w, products)
    assert torch.autograd.grad(constant, w, g)[0].dtype == torch.float32


@pytest.mark.parametrize(("rows", "inner", "columns"), [(16, 32, 48), (41, 40, 16), (7, 129, 96)])
@pytest.mark.parametrize(("left", "right"), [(E4M3, E4M3), (E5M2, E4M3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_simulated_products_are_those_of_scaled_mm(rows, inner, columns, left, right, dtype):
    torch.manual_seed(inner)
    a, b = quantize_tensor(torch.randn(rows, inner), left), quantize_tensor(torch.randn(columns, inner), right)
    simulated, units = (scaled_matmul(a, b, dtype, on).float() for on in (False, True))
    # torch's product on a CPU may round the sums to bfloat16 before it scales them.
    rtol = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(simulated, units, rtol=rtol, atol=rtol * float(simulated.abs().max()))


def test_transposed_operands_multiply_alike():
    a, b = quantize_tensor(torch.randn(24, 32)), quantize_tensor(torch.randn(24, 16))
    turned = Quantized(a.values.T, a.scales), Quantized(b.values.T, b.scales)
    torch.testing.assert_close(*(scaled_matmul(*turned, torch.float32, on) for on in (False, True)))


def test_a_cpu_has_no_units():
    assert not native("cpu") and not native("meta")
    assert torch.cuda.is_available() or not native("cuda")


@pytest.mark.slow
@pytest.mark.parametrize("products", ["fp8", "mxfp8", "int8"])
def test_compiled_it_is_the_same(products):
    x, w, g = inputs(40, 64, 96, torch.bfloat16)
    compiled = torch.compile(lambda x, w: quantized_linear(x, w, products), dynamic=False, fullgraph=True)
    for f in (compiled, lambda x, w: quantized_linear(x, w, products)):
        y = f(x, w)
        results = (y, *torch.autograd.grad(y, (x, w), g))
        if f is compiled:
            first = results
    for a, b in zip(first, results, strict=True):
        torch.testing.assert_close(a, b, rtol=2**-7, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "d_in", "d_out"), [(64, 128, 256), (41, 256, 128)])
def test_the_units_compute_what_is_simulated(rows, d_in, d_out):
    if not native("cuda"):
        pytest.skip("this GPU has no float8 matrix units (compute capability below 8.9)")
    x, w, g = (t.detach().cuda().requires_grad_() for t in inputs(rows, d_in, d_out, torch.bfloat16))
    y = quantized_linear(x, w, "fp8")
    found = (y, *torch.autograd.grad(y, (x, w), g))
    for got, want in zip(found, emulated(x, w, g, "fp8"), strict=True):
        # Float8 units add up with fewer bits than float32 has.
        assert (got.double() - want).abs().max() <= 1e-2 * want.abs().max()
