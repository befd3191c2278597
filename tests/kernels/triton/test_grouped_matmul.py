"""Grouped products in Triton against one product with everything else masked, and the table of tiles by hand."""

import pytest
import torch

from groundup.kernels import backend, grouped_matmul
from tests.kernels.triton.ahead import Kernel, compile_ahead

pytest.importorskip("triton")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
COUNTS = [[3, 0, 4], [0, 0, 0], [7], [0, 41, 1, 129]]


def exact_product(rows, weights, counts):
    """In float64, all rows by all experts, masked."""
    behind = len(rows) - sum(counts)
    owner = torch.repeat_interleave(torch.arange(len(counts) + 1), torch.tensor([*counts, behind]))
    mask = (owner[:, None] == torch.arange(len(counts))).double().to(rows.device)
    return torch.einsum("nd,eod,ne->no", rows.double(), weights.double(), mask)


def check(device, dtype, counts, behind, d_in, d_out):
    n, experts = sum(counts) + behind, len(counts)
    rows = torch.randn(n, d_in, device=device).to(dtype).requires_grad_()
    weights = (torch.randn(experts, d_out, d_in, device=device) / d_in**0.5).to(dtype).requires_grad_()
    upstream = torch.randn(n, d_out, device=device).to(dtype)
    ends = torch.tensor(counts, device=device).cumsum(0)
    with backend("triton"):
        out = grouped_matmul(rows, weights, ends)
    exact = exact_product(rows, weights, counts)
    found = [out, *torch.autograd.grad(out, [rows, weights], upstream)]
    expected = [exact, *torch.autograd.grad(exact, [rows, weights], upstream.double())]
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        scale = b.abs().max().item() if b.numel() else 0.0
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=TOLERANCE[dtype] * scale + 1e-30)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("behind", [0, 5])
def test_forward_and_backward(device, dtype, counts, behind):
    check(device, dtype, counts, behind, d_in=7, d_out=41)


def test_more_than_one_tile_each_way(device):
    check(device, torch.float32, [17, 70], 3, d_in=129, d_out=130)


def test_no_rows_at_all_and_views_of_larger_tensors(device):
    check(device, torch.float32, [0, 0], 0, d_in=4, d_out=5)
    rows, weights = torch.randn(6, 10, device=device)[:, ::2], torch.randn(5, 3, 2, device=device).transpose(0, 2)
    ends = torch.tensor([2, 4], device=device)
    with backend("triton"):
        torch.testing.assert_close(grouped_matmul(rows, weights, ends), grouped_matmul.reference(rows, weights, ends))


def test_the_table_of_tiles_by_hand():
    """Counts 3, 0, 5 and one row of nobody's, in tiles of four rows: five tiles at most, and the last is spare."""
    from groundup.kernels.triton.grouped_matmul import tile_table

    table, tiles = tile_table(torch.tensor([3, 3, 8]), 9, 4)
    assert tiles == 6
    assert table[:4].tolist() == [[0, 0, 3], [2, 3, 7], [2, 7, 8], [3, 8, 9]]
    assert (table[4:, 1] >= table[4:, 2]).all()


@pytest.mark.parametrize("height", [1, 4, 16])
def test_tiles_cover_every_row_once_and_no_tile_has_two_owners(height):
    from groundup.kernels.triton.grouped_matmul import tile_table

    for seed in range(20):
        counts = torch.randint(0, 9, (5,), generator=torch.Generator().manual_seed(seed))
        rows = int(counts.sum()) + seed % 3
        table, _ = tile_table(counts.cumsum(0), rows, height)
        covered = [(row, owner) for owner, first, end in table.tolist() for row in range(first, end)]
        behind = rows - int(counts.sum())
        expected = [owner for owner, count in enumerate([*counts.tolist(), behind]) for _ in range(count)]
        assert sorted(covered) == list(enumerate(expected))


def test_two_types_are_refused_with_the_reason(device):
    with backend("triton"), pytest.raises(ValueError, match="one type"):
        grouped_matmul(
            torch.zeros(2, 3, device=device), torch.zeros(1, 4, 3).to(device, torch.bfloat16), torch.tensor([2])
        )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_real_sizes_on_a_gpu(dtype):
    check(torch.device("cuda"), dtype, [512, 0, 1000, 3], 33, d_in=512, d_out=1408)


@pytest.mark.gpu
def test_compiled_as_one_graph_on_a_gpu():
    """The host asks the device for nothing, so the graph need not break where the reference's does."""
    rows, weights = torch.randn(64, 32, device="cuda"), torch.randn(3, 48, 32, device="cuda", requires_grad=True)
    ends = torch.tensor([10, 10, 60], device="cuda")
    out = torch.compile(grouped_matmul, fullgraph=True)(rows, weights, ends)
    out.sum().backward()
    torch.testing.assert_close(out, grouped_matmul.reference(rows, weights, ends), rtol=1e-4, atol=1e-4)
    assert weights.grad is not None and (weights.grad[1] == 0).all()


def test_compiled_for_hopper_with_its_tensor_cores_and_without_spills():
    pointers = dict.fromkeys(["x", "w", "y", "dy", "dw"], "*bf16:16") | dict.fromkeys(["table", "ends"], "*i64:16")
    sizes = dict.fromkeys(["d_in", "d_out", "stride_expert", "stride_out", "stride_in"], "i32:16")
    types = pointers | sizes | {"tiles": "i32", "experts": "i32"}
    tile = {"COLUMNS": 128, "INNER": 64, "PRECISION": "ieee"}
    kernels = [Kernel("grouped_matmul", "_multiply_transposed", types, tile, warps=8)]
    for rows, warps in ((128, 8), (64, 4)):
        for along in ("stride_in", "stride_out"):  # a stride of 1 is compiled in: of W, and of W read the other way
            signature = {name: kind for name, kind in types.items() if name != along}
            constants = tile | {"ROWS": rows, "PANEL": 8, along: 1}
            kernels.append(Kernel("grouped_matmul", "_multiply", signature, constants, warps=warps))
    for made in compile_ahead(kernels):
        assert made.spilled_bytes == 0 and made.warpgroup_products > 0 and made.asynchronous_copies > 0, made
