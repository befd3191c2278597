"""How often a test tries what chance decides: enough in every run of the suite, and more where somebody asks for it.

GROUNDUP_THOROUGH=5 make test
"""

import os

FACTOR = int(os.environ.get("GROUNDUP_THOROUGH", "1"))


def times(count: int) -> int:
    """So many trials, times what was asked for."""
    return count * FACTOR


def one_in(count: int) -> int:
    """The distance between two of what is tried: `count`, or less of it as more was asked for, at last 1."""
    return max(1, count // FACTOR)
