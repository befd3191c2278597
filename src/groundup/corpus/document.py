"""A document, and the account of what was read: everything that came in was kept, or skipped for a reason."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_LONGEST_MESSAGE = 400


@dataclass(frozen=True)
class Document:
    """One text, where it came from (`file`, or `file:record`), and the record's other plain fields."""

    text: str
    source: str
    metadata: dict[str, Any] = field(default_factory=dict)


class Unreadable(ValueError):
    """A file as a whole is of no use: binary, broken, a bomb, or without a field of text."""


@dataclass(frozen=True)
class Problem:
    """Something wrong in the input. `reason` is short and counted; `detail` is for the reader of one message.

    A problem with `dropped` false was repaired, and its document kept.
    """

    source: str
    reason: str
    detail: str = ""
    dropped: bool = True

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        end = "skipped" if self.dropped else "repaired"
        return printable(f"{self.source}: {self.reason}{detail}: {end}")


@dataclass
class Tally:
    """Counts that obey a law of conservation: `seen == kept + skipped`, checked at every step.

    The unit is a record: a document, or a whole file that could not be read as documents.
    """

    seen: int = 0
    kept: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)

    def keep(self) -> None:
        """Count one document that is passed on."""
        self.seen += 1
        self.kept += 1
        self._check()

    def note(self, problem: Problem) -> None:
        """Count one record that is skipped, or one repair of a record that will be kept."""
        if problem.dropped:
            self.seen += 1
            self.skipped[problem.reason] += 1
        else:
            self.repaired[problem.reason] += 1
        self._check()

    def _check(self) -> None:
        assert self.seen == self.kept + self.skipped.total(), self

    def __str__(self) -> str:
        groups = [f"{self.kept:,} of {self.seen:,} kept"]
        for verb, counts in (("skipped", self.skipped), ("repaired", self.repaired)):
            if counts:
                groups.append(f"{verb}: " + ", ".join(f"{n:,} x {reason}" for reason, n in counts.most_common()))
        return "; ".join(groups)


def printable(text: str) -> str:
    """`text` on one line and without control characters, so that no input writes into a terminal or a log."""
    if len(text) > _LONGEST_MESSAGE:
        text = text[: _LONGEST_MESSAGE - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
