"""Muon's iteration in Triton: symmetric products by half, against the whole ones."""

import pytest
import torch

from groundup.kernels import backend, newton_schulz
from groundup.kernels.triton._support import trying
from groundup.kernels.triton.muon import symmetric_product
from groundup.optim.muon import orthogonalize
from tests.kernels.triton.ahead import Kernel, compile_ahead

pytest.importorskip("triton")
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
SHAPES = [(1, 1, 1), (2, 7, 41), (1, 129, 130), (1, 33, 7), (0, 3, 4)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def matrices(shape, dtype, device):
    x = torch.randn(shape, device=device)
    return (x / x.norm(dim=(-2, -1), keepdim=True)).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_symmetric_product(device, shape, dtype):
    x = matrices(shape, dtype, device)
    got = symmetric_product(x)
    torch.testing.assert_close(got, got.mT)  # to the bit beside the diagonal; in its tiles, as the product makes it
    exact = x.double() @ x.double().mT
    torch.testing.assert_close(got.double(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * 0.1)
    polynomial = symmetric_product(got, base=got, alpha=2.0, beta=-4.0)
    square = got.double()
    torch.testing.assert_close(
        polynomial.double(), 2 * square @ square - 4 * square, rtol=TOLERANCE[dtype], atol=4 * TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_round_against_the_reference(device, shape, dtype):
    x = matrices(shape, dtype, device)
    with backend("triton"):
        got = newton_schulz(x, COEFFICIENTS)
    exact = newton_schulz.reference(x.double(), COEFFICIENTS)
    torch.testing.assert_close(got.double(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_tiles_of_every_place_in_the_triangle(device):
    """Six tiles a side: each number of a tile finds its row and column."""
    x = matrices((1, 96, 8), torch.float32, device)
    with trying("newton_schulz", {"BLOCK": 16, "INNER": 16}):
        torch.testing.assert_close(symmetric_product(x), x @ x.mT)
        apart = torch.randn(2, 20, 40, device=device)[:, :, ::2]
        torch.testing.assert_close(symmetric_product(apart), apart @ apart.mT, rtol=1e-5, atol=1e-5)


def test_orthogonalised_by_the_kernel(device):
    """Five rounds bring the singular values of a random matrix near 1, whoever multiplies."""
    x = torch.randn(2, 40, 24, device=device)
    with backend("triton"):
        got = orthogonalize(x)
    assert got.shape == x.shape and got.dtype == x.dtype
    values = torch.linalg.svdvals(got.cpu())
    assert values.min() > 0.6 and values.max() < 1.3
    torch.testing.assert_close(got, orthogonalize(x), rtol=0, atol=0.03)


@pytest.mark.gpu
def test_real_sizes_on_a_gpu():
    for dtype, shape in ((torch.bfloat16, (2, 2048, 5504)), (torch.float32, (1, 512, 700))):
        x = matrices(shape, dtype, torch.device("cuda"))
        with backend("triton"):
            got = newton_schulz(x, COEFFICIENTS)
        exact = newton_schulz.reference(x.double(), COEFFICIENTS)
        scale = float(exact.abs().max())
        torch.testing.assert_close(got.double(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)


def test_compiled_for_hopper_with_tensor_cores_and_without_spills():
    signature = {"x": "*bf16:16", "base": "*bf16:16", "out": "*bf16:16", "rows": "i32:16", "cols": "i32:16"}
    signature |= {"x_batch": "i32:16", "x_row": "i32:16", "alpha": "fp32", "beta": "fp32"}
    constants = {"EXACT": False, "BLOCK": 128, "INNER": 64}
    made = compile_ahead(
        [
            Kernel("muon", "_symmetric", signature, {**constants, "BASED": based}, warps=8, stages=4)
            for based in (False, True)
        ]
    )
    for kernel in made:
        assert kernel.spilled_bytes == 0 and kernel.warpgroup_products > 0 and kernel.shared_bytes <= 227 * 1024, made
