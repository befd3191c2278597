"""The loop that reads memory and does next to nothing else. Imported when it is to run: Numba is slow to import."""

import inspect
from collections.abc import Callable
from typing import Any

from numba import njit


def _compiled(function: Callable) -> Any:
    """The function itself is compiled, not what checks its arguments in tests."""
    return njit(cache=True, nogil=True)(inspect.unwrap(function))


@_compiled
def read(numbers, passes):
    """Read every number `passes` times. The pass is part of the sum, or the compiler would read once and multiply."""
    total = 0
    for turn in range(passes):
        for place in range(numbers.size):
            total += numbers[place] ^ turn
    return total
