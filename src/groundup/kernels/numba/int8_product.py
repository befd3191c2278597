"""X W^T and A^T B in int8, from bfloat16, for processors that multiply bytes (AVX-512 VNNI).

Such a processor multiplies bytes at twice the rate of bfloat16, but a product by itself leaves int32 sums, and what
lies between products would lose what they win. So a thread does everything for some rows at once, in its own cache:

    rows of X, bfloat16  -- their largest, 127ths of it -->  bytes, and a scale for each row
    bytes x a block of 32 outputs  -- sums in registers -->  times both scales, rounded to bfloat16

A^T B, whose sums go down both matrices, is rounded block by block of rows, all of it before the first product.

The code itself is in `_int8_code.py` and `_int8_transposed_code.py`.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from groundup.kernels.int8_product import BLOCK
from groundup.kernels.numba import _int8_code as of_rows
from groundup.kernels.numba import _int8_transposed_code as of_columns
from groundup.kernels.numba._int8_code import OUTPUTS, ROWS
from groundup.kernels.numba._int8_transposed_code import STRIP
from groundup.native.emit import has_byte_products

LONGEST = 1 << 16
CHUNK_BYTES = 128 << 10
"""Of X that a thread keeps in its cache while all blocks of W pass by."""
CHUNKS_PER_THREAD = 16


def refuses_int8_product(x: Tensor, matrix: Tensor) -> str | None:
    if x.dtype != torch.bfloat16:
        return f"it takes bfloat16 and not {x.dtype}"
    if any(size % OUTPUTS for size in matrix.shape) or not x.shape[0]:
        return f"it takes matrices whose sizes are multiples of {OUTPUTS}, not {tuple(matrix.shape)}, and rows"
    if matrix.shape[1] > LONGEST:
        return f"sums of more than {LONGEST:,} products of bytes may not fit 32 bits"
    return _refuses_here()


def refuses_int8_transposed_product(a: Tensor, b: Tensor) -> str | None:
    if a.dtype != torch.bfloat16 or b.dtype != torch.bfloat16:
        return f"it takes bfloat16 and not {a.dtype} and {b.dtype}"
    if a.shape[1] % STRIP or b.shape[1] % STRIP or not a.shape[0]:
        return f"it takes rows of multiples of {STRIP} numbers, not {tuple(a.shape)} and {tuple(b.shape)}"
    return _refuses_here()


def _refuses_here() -> str | None:
    if not has_byte_products():
        return "this processor has no products of bytes (AVX-512 VNNI)"
    if _openmp() is None:
        return "torch's threads are not those of GNU's OpenMP here, nor of one that knows its calls"
    return None


def int8_product(x: Tensor, matrix: Tensor) -> Tensor:
    (rows, inner), outer = x.shape, matrix.shape[0]
    x, matrix = x.contiguous(), matrix.detach().float()
    by_column = matrix.stride(0) == 1 and inner > 1
    if not by_column:
        matrix = matrix.contiguous()
    y = x.new_empty(-(-rows // ROWS) * ROWS, outer)  # tiles are whole; what is too much is cut off
    threads = torch.get_num_threads()
    chunk = _rows_of_chunk(rows, inner, threads)
    room = [
        torch.empty(outer * inner, dtype=torch.int8), torch.empty(outer), torch.empty(outer, dtype=torch.int32), y,
        torch.empty(threads * chunk * inner, dtype=torch.int8), torch.empty(threads * chunk),
    ]  # fmt: skip
    weights, scales, start, of_y, values, row_scales = (part.data_ptr() for part in room)
    job = [x.data_ptr(), rows, inner, outer, matrix.data_ptr(), 4 * matrix.stride(0), 4 * matrix.stride(1), by_column]
    job += [weights, scales, start, of_y, chunk, values, row_scales, *[0] * of_rows.COUNTERS]
    _run(of_rows.work_address(), job, threads)
    return y[:rows]


def _rows_of_chunk(rows: int, inner: int, threads: int) -> int:
    """What stays in a thread's cache while the matrix passes by, and less where there would be too few to share out."""
    tiles = -(-rows // ROWS)
    return ROWS * min(max(1, CHUNK_BYTES // (inner * ROWS)), -(-tiles // (threads * CHUNKS_PER_THREAD)))


def int8_transposed_product(a: Tensor, b: Tensor) -> Tensor:
    a, b = _whole_blocks(a), _whole_blocks(b)
    outer, inner, blocks = a.shape[1], b.shape[1], len(a) // BLOCK
    y = a.new_empty(outer, inner, dtype=torch.float32)
    columns = blocks * (outer + inner)
    room = [
        torch.empty(columns * BLOCK, dtype=torch.int8), torch.empty(columns), torch.empty(columns, dtype=torch.int32), y
    ]  # fmt: skip
    job = [a.data_ptr(), 2 * a.stride(0), outer // STRIP, b.data_ptr(), 2 * b.stride(0), inner // STRIP, blocks]
    job += [*(part.data_ptr() for part in room), 4 * inner, *[0] * of_columns.COUNTERS]
    _run(of_columns.work_address(), job, torch.get_num_threads())
    return y


def _whole_blocks(matrix: Tensor) -> Tensor:
    """Rows side by side in memory, and zeros after the last until a block is full: they change no scale and no sum."""
    if missing := -len(matrix) % BLOCK:
        return torch.nn.functional.pad(matrix, (0, 0, 0, missing))
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _run(work: int, numbers: list[int], threads: int) -> None:
    """Do a job on torch's own threads, which are awake or not, but in any case no others than those of its products."""
    job, parallel = torch.tensor(numbers), _openmp()
    assert parallel is not None
    parallel(work, job.data_ptr(), threads, 0)


@cache
def _openmp() -> Callable[[int, int, int, int], None] | None:
    """`GOMP_parallel` of the OpenMP library that torch has loaded: a function of a job's address, on some threads."""
    try:
        function = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    except (OSError, TypeError):  # Windows has no library of all that is loaded
        return None
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
    return function
