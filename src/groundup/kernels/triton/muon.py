"""A round of Muon's Newton-Schulz iteration, whose two symmetric products are computed by half and mirrored.

    A = X X^T,   P = b A + c A A^T,   X <- a X + P X

A and P are symmetric. A program computes one square tile of the lower half, and stores it twice: where it is, and
transposed on the other side of the diagonal. For m x n matrices that is m^2 n + m^3 FLOPs for the two instead of
2 m^2 n + 2 m^3; of the whole round, with the last product, for m = n, 4 m^3 instead of 6 m^3. The last one is no
symmetric product and stays with cuBLAS. P takes b A along in the same pass.

A tile of BLOCK x BLOCK needs 2 BLOCK INNER numbers for BLOCK^2 INNER multiplications: at 128, 64 per number
loaded. Sums are in float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from groundup.kernels.triton._support import refuses_device, tuned

# A tile's sums are 64 registers in each of 256 threads; 4 stages of 2 x 128 x 64 numbers are 128 KB of shared memory.
BLOCKS = {"BLOCK": 128, "INNER": 64, "warps": 8, "stages": 4}
# In float32 the tensor cores would round inputs to 11 bits, so products run on the other cores and from smaller tiles.
EXACT_BLOCKS = {"BLOCK": 32, "INNER": 32, "warps": 4, "stages": 2}
CANDIDATES = {
    "newton_schulz": [
        {"BLOCK": 128, "INNER": 64, "warps": 4, "stages": 4},
        {"BLOCK": 128, "INNER": 64, "warps": 8, "stages": 3},
        {"BLOCK": 128, "INNER": 128, "warps": 8, "stages": 3},
        {"BLOCK": 64, "INNER": 64, "warps": 4, "stages": 4},
    ]
}


def refuses(x: Tensor, coefficients: tuple[float, float, float]) -> str | None:
    if x.requires_grad:
        return "the kernel has no backward pass"
    return refuses_device(x)


def newton_schulz(x: Tensor, coefficients: tuple[float, float, float]) -> Tensor:
    a, b, c = coefficients
    gram = symmetric_product(x)
    return torch.baddbmm(x, symmetric_product(gram, base=gram, alpha=c, beta=b), x, beta=a)


def symmetric_product(x: Tensor, base: Tensor | None = None, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    """alpha X X^T + beta base, for symmetric `base`: (batch, rows, rows) of (batch, rows, cols)."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    base = None if base is None else base.contiguous()
    batch, rows, cols = x.shape
    out = x.new_empty(batch, rows, rows)
    default = EXACT_BLOCKS if x.dtype == torch.float32 else BLOCKS
    blocks = tuned("newton_schulz", (x.dtype, rows, cols), default)
    if out.numel():
        tiles = triton.cdiv(rows, blocks["BLOCK"])
        _symmetric[(tiles * (tiles + 1) // 2, batch)](
            x, out if base is None else base, out, rows, cols, x.stride(0), x.stride(1), alpha, beta,
            BASED=base is not None, EXACT=x.dtype == torch.float32, BLOCK=blocks["BLOCK"], INNER=blocks["INNER"],
            num_warps=blocks["warps"], num_stages=blocks["stages"],
        )  # fmt: skip
    return out


def traffic(batch: int, rows: int, cols: int, element_bytes: int = 2) -> int:
    """Bytes from and to DRAM in a round, where nothing is read twice: X, A; A, P; then X, P and the new X."""
    return batch * element_bytes * (3 * rows * cols + 4 * rows * rows)


@triton.jit
def _symmetric(
    x, base, out, rows, cols, x_batch, x_row, alpha, beta,
    BASED: tl.constexpr, EXACT: tl.constexpr, BLOCK: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    # Tiles are numbered along the rows of the lower half: row i begins after 1 + 2 + ... + i of them.
    i = ((tl.sqrt(8.0 * tile + 1.0) - 1.0) * 0.5).to(tl.int32)
    i = tl.where(i * (i + 1) // 2 > tile, i - 1, i)  # the square root is rounded
    i = tl.where((i + 1) * (i + 2) // 2 <= tile, i + 1, i)
    j = tile - i * (i + 1) // 2
    sequence = tl.program_id(1).to(tl.int64)

    down = i * BLOCK + tl.arange(0, BLOCK)
    along = j * BLOCK + tl.arange(0, BLOCK)
    inner = tl.arange(0, INNER)
    x += sequence * x_batch
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for begin in range(0, cols, INNER):
        known = begin + inner < cols
        left_mask, right_mask = (down < rows)[:, None] & known[None, :], (along < rows)[:, None] & known[None, :]
        left = tl.load(x + down[:, None].to(tl.int64) * x_row + begin + inner[None, :], mask=left_mask, other=0.0)
        right = tl.load(x + along[:, None].to(tl.int64) * x_row + begin + inner[None, :], mask=right_mask, other=0.0)
        total = tl.dot(left, tl.trans(right), total, input_precision="ieee" if EXACT else "tf32")

    both = (down < rows)[:, None] & (along < rows)[None, :]
    places = sequence * rows * rows + down[:, None].to(tl.int64) * rows + along[None, :]
    total *= alpha
    if BASED:
        total += beta * tl.load(base + places, mask=both, other=0.0).to(tl.float32)
    result = total.to(out.dtype.element_ty)
    tl.store(out + places, result, mask=both)
    if i != j:
        mirrored = sequence * rows * rows + along[:, None].to(tl.int64) * rows + down[None, :]
        tl.store(out + mirrored, tl.trans(result), mask=(along < rows)[:, None] & (down < rows)[None, :])
