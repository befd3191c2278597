"""X W^T in int8, from bfloat16 to bfloat16, for processors that multiply bytes (AVX-512 VNNI).

Such a processor multiplies bytes at twice the rate of bfloat16, but a product by itself leaves int32 sums, and what
lies between products would lose what they win. So a thread does everything for some rows at once, in its own cache:

    rows of X, bfloat16  -- their largest, 127ths of it -->  bytes, and a scale for each row
    bytes x a block of 32 outputs  -- sums in registers -->  times both scales, rounded to bfloat16

The code itself is in `_int8_code.py`.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from groundup.kernels.numba._int8_code import COUNTERS, OUTPUTS, ROWS, work_address
from groundup.native.emit import has_byte_products

LONGEST = 1 << 16
CHUNK_BYTES = 128 << 10
"""Of X that a thread keeps in its cache while all blocks of W pass by."""
CHUNKS_PER_THREAD = 16


def refuses(x: Tensor, matrix: Tensor) -> str | None:
    if x.dtype != torch.bfloat16:
        return f"it takes bfloat16 and not {x.dtype}"
    if any(size % OUTPUTS for size in matrix.shape) or not x.shape[0]:
        return f"it takes matrices whose sizes are multiples of {OUTPUTS}, not {tuple(matrix.shape)}, and rows"
    if matrix.shape[1] > LONGEST:
        return f"sums of more than {LONGEST:,} products of bytes may not fit 32 bits"
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
    job += [weights, scales, start, of_y, chunk, values, row_scales, *[0] * COUNTERS]
    _run(torch.tensor(job), threads)
    return y[:rows]


def _rows_of_chunk(rows: int, inner: int, threads: int) -> int:
    """What stays in a thread's cache while the matrix passes by, and less where there would be too few to share out."""
    tiles = -(-rows // ROWS)
    return ROWS * min(max(1, CHUNK_BYTES // (inner * ROWS)), -(-tiles // (threads * CHUNKS_PER_THREAD)))


def _run(job: Tensor, threads: int) -> None:
    """Do a job on torch's own threads, which are awake or not, but in any case no others than those of its products."""
    work, parallel = work_address(), _openmp()
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
