"""Arrays that begin where a huge page does."""

import numpy as np

_HUGE_PAGE = 1 << 21


def aligned_zeros(count: int) -> np.ndarray:
    """uint64 zeros at the begin of a huge page, where the system has them: fewer pages, fewer misses of the TLB."""
    page = _HUGE_PAGE if 8 * count >= _HUGE_PAGE // 4 else 64
    array = np.zeros(count + 2 * page // 8, np.uint64)  # NumPy asks for huge pages from 4 MB on
    skip = (-array.ctypes.data % page) // 8
    return array[skip : skip + count]
