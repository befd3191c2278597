"""Lines for the person who waits. They go to standard error: standard output is for results."""

import sys


def say(line: str) -> None:
    """Print one line at once."""
    print(line, file=sys.stderr, flush=True)
