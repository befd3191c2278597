"""How many micro-batches: the fewest that fit, and twice as many where that was too few."""

import logging
from dataclasses import dataclass
from typing import Literal

from groundup.device import available_bytes
from groundup.train.rehearsal import states
from groundup.train.shortage import Rehearsals, Shortage, autopsy, fewest

logger = logging.getLogger("groundup.train")
# The rest is for what the prediction does not see: libraries' own buffers, and gaps between allocations.
FREE_SHARE = 0.9


@dataclass(frozen=True)
class AtLeast:
    """So many micro-batches to begin with, and twice as many where they do not fit."""

    number: int


@dataclass
class Memory:
    """Into how many micro-batches `train` cuts a batch. `wanted` is a number, `AtLeast` of one, or "auto"."""

    wanted: int | AtLeast | Literal["auto"]

    def __post_init__(self) -> None:
        number = self.wanted.number if isinstance(self.wanted, AtLeast) else self.wanted
        if number != "auto" and (not isinstance(number, int) or number < 1):
            raise ValueError(f"train: micro_batches={self.wanted!r}; expected a number, at least 1, or 'auto'")
        self.micro_batches = 1 if number == "auto" else number
        self._chosen = number != "auto"

    @property
    def stored(self) -> int | None:
        """For a checkpoint: the number, once it is known, where it was free to choose."""
        return self.micro_batches if self._chosen and not isinstance(self.wanted, int) else None

    def go_on_with(self, stored: int | None) -> None:
        """The number of the run that is continued, where it is free: another order of sums would give other bits."""
        if stored is not None and not isinstance(self.wanted, int):
            self.micro_batches, self._chosen = max(self.micro_batches, stored), True

    def choose(self, rehearsals: Rehearsals) -> None:
        """Once, before the first step: the fewest micro-batches that fit into the free memory, where both are known."""
        if self._chosen:
            return
        self._chosen = True
        free = available_bytes(next(rehearsals.model.parameters()).device)
        if not free:
            return
        try:
            self.micro_batches = fewest_micro_batches(rehearsals, int(FREE_SHARE * free))
        except Exception as error:  # an objective may do what tensors without storage cannot: then it is tried
            logger.warning("the step could not be rehearsed (%s); micro_batches=1 is tried", type(error).__name__)

    def give_way(self, shortage: Shortage, step: int, rehearsals: Rehearsals) -> str:
        """Twice as many micro-batches; what to tell. Raises OutOfMemory where their number was given, or no row is left
        to part."""
        if isinstance(self.wanted, int) or self.micro_batches >= rehearsals.rows:
            raise autopsy(shortage, step, self.micro_batches, rehearsals)
        before, self.micro_batches = self.micro_batches, min(2 * self.micro_batches, rehearsals.rows)
        return (
            f"micro_batches={before} did not fit in the {shortage.phase} ({shortage.text}); the same step is repeated "
            f"with micro_batches={self.micro_batches}, whose gradient is the same"
        )


def fewest_micro_batches(rehearsals: Rehearsals, free_bytes: int) -> int:
    """1, 2, 4, ... or one row each: the first whose step adds no more than `free_bytes` to what is there already."""
    there = sum(p.nbytes for p in rehearsals.model.parameters())
    there += sum(state.nbytes for state in states(rehearsals.optimizer))
    number, _ = fewest(rehearsals.simulate, 1, rehearsals.rows, there + free_bytes)
    return number
