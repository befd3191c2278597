"""What each efficiency decision saves on this machine: `groundup report --why`.

Every decision is measured as a pair (see `decisions`), all of them in turns, so that other work on the machine slows
both sides. A row says whether it was measured here, counted, or is taken from a record.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch._dynamo.exc import TorchDynamoException

from groundup.accounting.law import BUILD_LAW
from groundup.bench.decisions import Pair, Sizes, pairs
from groundup.bench.measure import Rates, interleave

SECONDS = 20.0
PAUSE = 0.02
TURN_SECONDS = 0.1
RECORDED_PASSES = 10.0
STEADY = 0.25
NOTES = (
    "Filtering has no row: the package has no rules yet that drop documents, so there is no share to measure.",
    "The epochs' row is the fit of experiment 003 (experiments/LOG.md), with Muennighoff et al. 2023 "
    "(arXiv:2305.16264): it was not measured now.",
    "A window saves FLOPs in a forward pass only where the kernel skips what lies outside of it.",
)

DISTURBED = (
    "Measurements of the same thing differ much: other work uses this machine, so factors of time are rough. Run it "
    "again, or with OMP_NUM_THREADS=1, which suffers less."
)


@dataclass(frozen=True)
class Saving:
    """One row: a quantity before and after a decision. `spread` is half of the middle half's width over the median, of
    either side, where it was measured; `runs` is how often."""

    decision: str
    compared: str
    quantity: str
    before: float
    after: float
    unit: str
    how: Literal["measured", "counted", "recorded"]
    spread_before: float = 0.0
    spread_after: float = 0.0
    runs: int = 0

    @property
    def factor(self) -> float:
        """How many times less it is; below 1, more."""
        return self.before / self.after


@dataclass(frozen=True)
class Why:
    """All rows, and what a reader has to know beside them."""

    rows: tuple[Saving, ...]
    notes: tuple[str, ...]
    threads: int
    seconds: float


def why(seconds: float = SECONDS, sizes: Sizes | None = None, say: Callable[[str], None] = lambda line: None) -> Why:
    """Measure every decision for about `seconds` in all; preparing takes about ten more.

    Raises ValueError when the two ways of a pair do not agree: then there is nothing to compare.
    """
    began = time.monotonic()
    notes: list[str] = [*NOTES]
    with tempfile.TemporaryDirectory() as folder:
        ready = [pair for pair in pairs(sizes or Sizes(), folder) if _checked(pair, notes, say)]
    say(f"measuring for {seconds:g} s")
    programs = {}
    for i, pair in enumerate(ready):
        programs[f"{i} before"] = _clock(pair.run_before, pair.per_before)
        programs[f"{i} after"] = _clock(pair.run_after, pair.per_after)
    rates = interleave(programs, seconds=seconds, pause=PAUSE)
    rows = [row for i, pair in enumerate(ready) for row in _rows(pair, rates[f"{i} before"], rates[f"{i} after"])]
    if max(row.spread_before + row.spread_after for row in rows) > STEADY:
        notes.append(DISTURBED)
    return Why((*rows, one_epoch()), tuple(notes), torch.get_num_threads(), time.monotonic() - began)


def _checked(pair: Pair, notes: list[str], say: Callable[[str], None]) -> bool:
    """Run both sides once, which also compiles and warms them. Without a compiler its row is left out, aloud."""
    say(f"preparing: {pair.decision}")
    try:
        agree = pair.agree()
    except (OSError, ImportError, TorchDynamoException) as error:
        notes.append(f"{pair.decision} has no row, as it does not run here: {str(error).splitlines()[0][:120]}")
        return False
    if not agree:
        raise ValueError(
            f"why: {pair.decision}: {pair.before} and {pair.after} give different results: nothing to compare"
        )
    pair.run_before()
    pair.run_after()
    return True


def _clock(run: Callable[[], object], per: float) -> Callable[[], float]:
    """Units of work per second, of as many calls as fill a turn: one short call would measure the scheduler."""

    def turn() -> float:
        start, calls, elapsed = time.perf_counter(), 0, 0.0
        while elapsed < TURN_SECONDS:
            run()
            calls, elapsed = calls + 1, time.perf_counter() - start
        return per * calls / elapsed

    return turn


def _rows(pair: Pair, before: Rates, after: Rates) -> list[Saving]:
    compared = f"{pair.before} / {pair.after}"
    sides = [[1 / rate for rate in rates.values] for rates in (before, after)]
    medians = [statistics.median(side) for side in sides]
    timed = Saving(pair.decision, compared, f"time of {pair.work}", medians[0], medians[1], "s", "measured",
                   relative_spread(sides[0]), relative_spread(sides[1]), len(sides[0]))  # fmt: skip
    counted = [
        Saving(pair.decision, compared, quantity, values[0], values[1], "", "counted")
        for quantity, values in pair.counted.items()
    ]
    return [timed, *counted]


def relative_spread(values: Sequence[float]) -> float:
    """Half of the interquartile range over the median.

    >>> relative_spread([1.0, 2.0, 3.0])
    0.25
    """
    return Rates(tuple(values)).spread / 2 / statistics.median(values)


def one_epoch() -> Saving:
    """Fresh text against the same text again: what ten passes pay, and what they are worth, in passes over it."""
    worth = BUILD_LAW.effective_bytes(1.0, RECORDED_PASSES)
    return Saving(
        "one epoch",
        f"{RECORDED_PASSES:g} passes over a text / as much fresh text as teaches the same",
        "passes trained on",
        RECORDED_PASSES,
        worth,
        "",
        "recorded",
    )
