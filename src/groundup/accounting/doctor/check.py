"""One finding about the machine: how it stands, why in one line, and what to do about it in one."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "absent", "warning", "broken"]


@dataclass(frozen=True)
class Check:
    """`absent` is what is not here and nothing needs, `warning` costs speed or comfort, `broken` stops some work."""

    name: str
    state: State
    why: str
    fix: str = ""

    def __post_init__(self) -> None:
        assert self.fix or self.state in ("ok", "absent"), f"{self.name}: a {self.state} check says what to do"


def exit_code(checks: Iterable[Check]) -> int:
    """1 when something is broken, else 0."""
    return int(any(check.state == "broken" for check in checks))


def mebibytes(size: float) -> str:
    """For people.

    >>> mebibytes(48 * 2**10), mebibytes(3 * 2**20), mebibytes(2**31)
    ('48 KiB', '3 MiB', '2.0 GiB')
    """
    if size < 2**20:
        return f"{size / 2**10:.0f} KiB"
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"
