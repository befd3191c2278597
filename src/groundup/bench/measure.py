"""Interleaved measurement: programs take turns in one run, so what slows the machine slows all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Repeated measurements of one program, in units per second."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Interquartile range: the width that the middle half of the measurements falls in."""
        if len(self.values) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return high - low


def interleave(
    programs: Mapping[str, Callable[[], float]], *, seconds: float, min_rounds: int = 3, pause: float = 0.2
) -> dict[str, Rates]:
    """Let every program measure itself once per round until `seconds` have passed.

    A program returns its rate (units per second). The order turns by one each round, so that none always
    follows the same neighbour. pause: seconds between turns, in which the threads that the last program left
    spinning go to sleep.
    """
    names = list(programs)
    measured: dict[str, list[float]] = {name: [] for name in names}
    started, rounds = time.monotonic(), 0
    while rounds < min_rounds or time.monotonic() - started < seconds:
        turn = rounds % len(names)
        for name in names[turn:] + names[:turn]:
            time.sleep(pause)
            measured[name].append(programs[name]())
        rounds += 1
    return {name: Rates(tuple(values)) for name, values in measured.items()}
