"""Roots and minima on a logarithmic axis: sizes and budgets span many powers of ten, and so must a search."""

import math
from collections.abc import Callable

_GOLDEN = (math.sqrt(5) - 1) / 2
_HALVINGS = 200
_POINTS = 400


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that rises from below 0 at `low` to above it at `high` crosses 0, both positive.

    >>> round(root(lambda x: x * x - 2, 1e-3, 1e3), 9)
    1.414213562
    """
    for _ in range(_HALVINGS):
        middle = math.sqrt(low) * math.sqrt(high)
        if not low < middle < high:
            break
        low, high = (low, middle) if function(middle) > 0 else (middle, high)
    return math.sqrt(low) * math.sqrt(high)


def least(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function is least between two positive numbers: the best of a grid, then a golden section around it.

    The grid finds the right one of several valleys, if they are not narrower than a 400th of the way. The function may
    be infinite.

    >>> round(least(lambda x: x + 4 / x, 1e-6, 1e6), 6)
    2.0
    """
    step = math.log(high / low) / _POINTS
    grid = [math.log(low) + i * step for i in range(_POINTS + 1)]
    best = min(grid, key=lambda x: function(math.exp(x)))
    a, b = max(grid[0], best - step), min(grid[-1], best + step)
    while b - a > 1e-10:
        c, d = b - _GOLDEN * (b - a), a + _GOLDEN * (b - a)
        a, b = (a, d) if function(math.exp(c)) < function(math.exp(d)) else (c, b)
    return math.exp((a + b) / 2)
