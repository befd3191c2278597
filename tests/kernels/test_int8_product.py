"""X W^T and A^T B in int8: formulas against double precision, compiled kernels against formulas, bit for bit."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from groundup import kernels
from groundup.kernels.int8_product import (
    BLOCK,
    int8_product,
    int8_transposed_product,
    multiplies_bytes,
    traced_int8_product,
    traced_int8_transposed_product,
)
from groundup.kernels.numba import _int8_code
from groundup.kernels.numba import int8_product as compiled

reference, transposed_reference = int8_product.reference, int8_transposed_product.reference
needs_units = pytest.mark.skipif(not multiplies_bytes("cpu"), reason="this processor has no products of bytes")


def matrices(rows, outer, inner):
    """Rows of X and of W whose sizes differ by powers of ten."""
    torch.manual_seed(rows + outer + inner)
    x = torch.randn(rows, inner) * 10 ** torch.randint(-6, 6, (rows, 1)).float()
    return x.bfloat16(), torch.randn(outer, inner) * 10 ** torch.randint(-4, 4, (outer, 1)).float()


def tall(rows, outer, inner):
    """A and B whose columns differ by powers of ten, in one block of rows more than in another."""
    torch.manual_seed(rows + outer + inner)
    a, b = (torch.randn(rows, n) * 10 ** torch.randint(-4, 4, (n,)).float() for n in (outer, inner))
    a[: rows // 2] *= 1e3
    return a.bfloat16(), b.bfloat16()


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


@pytest.mark.parametrize(("rows", "outer", "inner"), [(1, 32, 32), (256, 5, 3), (600, 96, 40)])
def test_the_reference_multiplies_steps_of_columns_block_by_block(rows, outer, inner):
    a, b = tall(rows, outer, inner)
    found, wanted, unsure = transposed_reference(a, b), np.zeros((outer, inner)), np.zeros((outer, inner))
    for start in range(0, rows, BLOCK):
        of_block = [matrix[start : start + BLOCK].float().T for matrix in (a, b)]
        (of_a, a_step), (of_b, b_step) = (steps_of(columns) for columns in of_block)
        wanted += of_a @ of_b.T * a_step * b_step.T
        middle = [
            (np.abs(np.abs(columns.double().numpy() / step % 1) - 0.5) < 1e-4).sum(1)
            for columns, step in zip(of_block, (a_step, b_step), strict=True)
        ]
        unsure += (127 * (middle[0][:, None] + middle[1]) + 1e-5 * 127**2 * BLOCK) * a_step * b_step.T
    assert found.dtype == torch.float32
    assert (np.abs(found.double().numpy() - wanted) <= unsure).all()
    exact = a.double().numpy().T @ b.double().numpy()
    lengths = np.outer(*(np.linalg.norm(matrix.double().numpy(), axis=0) for matrix in (a, b)))
    assert 0 < np.abs((found.double().numpy() - exact) / lengths).max() < 0.02


@needs_units
@pytest.mark.parametrize("rows", [1, 255, 256, 257, 1000])
@pytest.mark.parametrize(("outer", "inner"), [(32, 32), (96, 64), (320, 864)])
def test_the_transposed_kernel_has_the_bits_of_its_reference(rows, outer, inner):
    a, b = tall(rows, outer, inner)
    turned = a.T.contiguous().T
    wider = torch.cat([b, b], 1)[:, :inner]
    wanted = transposed_reference(a, b)
    for left, right in ((a, b), (turned, wider)):
        assert compiled.refuses_int8_transposed_product(left, right) is None
        assert torch.equal(compiled.int8_transposed_product(left, right), wanted)


@needs_units
@pytest.mark.parametrize("rows", [1, 11, 12, 13, 25, 203, 500])
@pytest.mark.parametrize(("outer", "inner"), [(32, 32), (96, 64), (64, 1376), (864, 320)])
def test_the_kernel_has_the_bits_of_the_reference(rows, outer, inner):
    x, w = matrices(rows, outer, inner)
    turned = w.T.contiguous().T  # column by column in memory, as the backward pass reads a weight
    wider = torch.cat([w, w], 1)[:, :inner]
    wanted = reference(x, w)
    for matrix in (w, turned, wider):
        assert compiled.refuses_int8_product(x, matrix) is None
        assert torch.equal(compiled.int8_product(x, matrix), wanted)
    assert torch.equal(compiled.int8_product(torch.cat([x, x], 1)[:, :inner], w), wanted)


@needs_units
def test_any_number_of_threads_has_the_same_bits():
    x, w = matrices(700, 96, 128)
    a, b = tall(700, 96, 128)
    for product in (lambda: compiled.int8_product(x, w), lambda: compiled.int8_transposed_product(a, b)):
        before = torch.get_num_threads()
        try:
            results = []
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                results.append(product())
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(result, results[0]) for result in results)
        with ThreadPoolExecutor(4) as pool:
            assert all(torch.equal(y, results[0]) for y in pool.map(lambda _, p=product: p(), range(40)))


@needs_units
def test_a_processor_without_products_of_bfloat16_rounds_alike(monkeypatch):
    x, w = matrices(50, 64, 96)
    monkeypatch.setattr(_int8_code, "has_bf16_products", lambda: False)
    monkeypatch.setattr(_int8_code, "work_address", _int8_code.work_address.__wrapped__)
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
    "product", [pytest.param(compiled.int8_transposed_product, marks=needs_units), int8_transposed_product.reference]
)
def test_what_is_not_finite_stays_in_its_column_and_zeros_are_zeros(product):
    a, b = tall(300, 64, 96)
    a[3, 5], a[299, 0], a[:, 20], a[:, 21] = torch.nan, torch.inf, 0, 1e-38
    b[9, 1], b[280, 2], b[:, 11] = torch.nan, -torch.inf, 0
    y = product(a, b)
    rows, columns = (torch.tensor([i not in bad for i in range(n)]) for n, bad in ((64, {5, 0}), (96, {1, 2})))
    assert torch.equal(torch.isfinite(y), rows[:, None] & columns)
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
    assert why in compiled.refuses_int8_product(x, w)
    assert torch.equal(int8_product(x, w), reference(x, w))
    with kernels.backend("numba"), pytest.raises(ValueError, match=why):
        int8_product(x, w)


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        (torch.ones(4, 32), torch.ones(4, 32).bfloat16(), "float32"),
        (torch.ones(4, 48).bfloat16(), torch.ones(4, 32).bfloat16(), "multiples of 32"),
        (torch.ones(0, 32).bfloat16(), torch.ones(0, 32).bfloat16(), "takes rows"),
    ],
)
def test_what_the_transposed_kernel_refuses_the_reference_does(a, b, why):
    assert why in compiled.refuses_int8_transposed_product(a, b)
    assert torch.equal(int8_transposed_product(a, b), transposed_reference(a, b))


@pytest.mark.parametrize("name", ["has_byte_products", "_openmp"])
def test_another_processor_or_another_openmp_is_refused(name, monkeypatch):
    monkeypatch.setattr(compiled, name, lambda: None)
    assert compiled.refuses_int8_product(torch.ones(4, 32).bfloat16(), torch.ones(32, 32))


def test_one_node_of_a_graph():
    x, w = matrices(24, 64, 32)
    torch.library.opcheck(traced_int8_product, (x, w))
    assert torch.equal(traced_int8_product(x, w), int8_product(x, w))
    shape = traced_int8_product(x.to("meta"), w.to("meta"))
    assert shape.shape == (24, 64) and shape.dtype == torch.bfloat16
    a, b = tall(40, 64, 32)
    torch.library.opcheck(traced_int8_transposed_product, (a, b))
    assert torch.equal(traced_int8_transposed_product(a, b), int8_transposed_product(a, b))
    shape = traced_int8_transposed_product(a.to("meta"), b.to("meta"))
    assert shape.shape == (64, 32) and shape.dtype == torch.float32
