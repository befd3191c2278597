"""X W^T in int8: the formula against double precision, and the compiled kernel against the formula, bit for bit."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from groundup import kernels
from groundup.kernels.int8_product import int8_product, multiplies_bytes, traced_int8_product
from groundup.kernels.numba import _int8_code
from groundup.kernels.numba import int8_product as compiled

reference = int8_product.reference
needs_units = pytest.mark.skipif(not multiplies_bytes("cpu"), reason="this processor has no products of bytes")


def matrices(rows, outer, inner):
    """Rows of X and of W whose sizes differ by powers of ten."""
    torch.manual_seed(rows + outer + inner)
    x = torch.randn(rows, inner) * 10 ** torch.randint(-6, 6, (rows, 1)).float()
    return x.bfloat16(), torch.randn(outer, inner) * 10 ** torch.randint(-4, 4, (outer, 1)).float()


def steps_of(matrix):
    """Each row in steps of a 127th of its largest number, and a step's size, in double precision."""
    matrix = matrix.double().numpy()
    step = np.abs(matrix).max(1, keepdims=True) / 127
    return np.rint(matrix / step), step


@pytest.mark.parametrize(("rows", "outer", "inner"), [(1, 32, 32), (7, 5, 3), (40, 96, 320)])
def test_the_reference_multiplies_steps_of_rows(rows, outer, inner):
    x, w = matrices(rows, outer, inner)
    (of_x, x_step), (of_w, w_step) = steps_of(x), steps_of(w)
    wanted = of_x @ of_w.T * x_step * w_step.T
    found = reference(x.float(), w).double().numpy()
    # A number in the middle between two steps may go either way in float32.
    middle = (np.abs(np.abs(x.double().numpy() / x_step % 1) - 0.5) < 1e-4).sum(1, keepdims=True)
    middle = middle + (np.abs(np.abs(w.double().numpy() / w_step % 1) - 0.5) < 1e-4).sum(1)
    assert (np.abs(found - wanted) <= (127 * middle + 1e-5 * 127**2 * inner) * x_step * w_step.T).all()
    exact = x.double().numpy() @ w.double().numpy().T
    assert np.abs(found - exact).max() > 0 and np.linalg.norm(found - exact) < 0.02 * np.linalg.norm(exact)


@needs_units
@pytest.mark.parametrize("rows", [1, 11, 12, 13, 25, 203, 500])
@pytest.mark.parametrize(("outer", "inner"), [(32, 32), (96, 64), (64, 1376), (864, 320)])
def test_the_kernel_has_the_bits_of_the_reference(rows, outer, inner):
    x, w = matrices(rows, outer, inner)
    turned = w.T.contiguous().T  # column by column in memory, as the backward pass reads a weight
    wider = torch.cat([w, w], 1)[:, :inner]
    wanted = reference(x, w)
    for matrix in (w, turned, wider):
        assert compiled.refuses(x, matrix) is None
        assert torch.equal(compiled.int8_product(x, matrix), wanted)
    assert torch.equal(compiled.int8_product(torch.cat([x, x], 1)[:, :inner], w), wanted)


@needs_units
def test_any_number_of_threads_has_the_same_bits():
    x, w = matrices(700, 96, 128)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(compiled.int8_product(x, w))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(y, results[0]) for y in pool.map(lambda _: compiled.int8_product(x, w), range(40)))


@needs_units
def test_a_processor_without_products_of_bfloat16_rounds_alike(monkeypatch):
    x, w = matrices(50, 64, 96)
    monkeypatch.setattr(_int8_code, "has_bf16_products", lambda: False)
    monkeypatch.setattr(compiled, "work_address", _int8_code.work_address.__wrapped__)
    assert torch.equal(compiled.int8_product(x, w), reference(x, w))


@pytest.mark.parametrize("product", [pytest.param(compiled.int8_product, marks=needs_units), reference])
def test_what_is_not_finite_stays_in_its_row_and_zeros_are_zeros(product):
    x, w = (torch.randn(40, 64).bfloat16(), torch.randn(96, 64))
    x[3, 5], x[17, 0], x[20], x[21] = torch.nan, torch.inf, 0, 1e-38
    w[9, 1], w[10, 2], w[11] = torch.nan, -torch.inf, 0
    for matrix in (w, w.T.contiguous().T):
        finite = torch.isfinite(product(x, matrix))
        rows, columns = (torch.tensor([i not in bad for i in range(n)]) for n, bad in ((40, {3, 17}), (96, {9, 10})))
        assert torch.equal(finite, rows[:, None] & columns)
    y = product(x, w)
    assert not y[20, 20:].any() and not y[21, 20:].any() and not y[22:, 11].any()


@pytest.mark.parametrize(
    ("x", "w", "why"),
    [
        (torch.ones(4, 32), torch.ones(32, 32), "float32"),
        (torch.ones(4, 48).bfloat16(), torch.ones(32, 48), "multiples of 32"),
        (torch.ones(0, 32).bfloat16(), torch.ones(32, 32), "and rows"),
        (torch.ones(1, 2**17).bfloat16(), torch.ones(32, 2**17), "65,536"),
    ],
)
def test_what_the_kernel_refuses_the_reference_does(x, w, why):
    assert why in compiled.refuses(x, w)
    assert torch.equal(int8_product(x, w), reference(x, w))
    with kernels.backend("numba"), pytest.raises(ValueError, match=why):
        int8_product(x, w)


@pytest.mark.parametrize("name", ["has_byte_products", "_openmp"])
def test_another_processor_or_another_openmp_is_refused(name, monkeypatch):
    monkeypatch.setattr(compiled, name, lambda: None)
    assert compiled.refuses(torch.ones(4, 32).bfloat16(), torch.ones(32, 32))


def test_one_node_of_a_graph():
    x, w = matrices(24, 64, 32)
    torch.library.opcheck(traced_int8_product, (x, w))
    assert torch.equal(traced_int8_product(x, w), int8_product(x, w))
    shape = traced_int8_product(x.to("meta"), w.to("meta"))
    assert shape.shape == (24, 64) and shape.dtype == torch.bfloat16
