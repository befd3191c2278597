"""The loop that reads memory and does next to nothing else. Imported when it is to run: Numba is slow to import."""

from numba import njit


@njit(cache=True, nogil=True)
def read(numbers, passes):
    """Read every number `passes` times. The pass is part of the sum, or the compiler would read once and multiply."""
    total = 0
    for turn in range(passes):
        for place in range(numbers.size):
            total += numbers[place] ^ turn
    return total
