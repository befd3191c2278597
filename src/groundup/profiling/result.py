"""What a profile found: one row per group and per operation, FLOPs beside time beside the least time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from groundup.accounting.roofline import Ceiling, Work
from groundup.profiling.attribution import Spent
from groundup.profiling.groups import GROUPS, OTHER, by_group
from groundup.profiling.settings import ProfileSettings
from groundup.profiling.timeline import Timeline

# A step is as long as the one before it, to a few per cent, unless something else uses the machine.
STEADY = 1.3


@dataclass(frozen=True)
class GroupRow:
    """One group in one step.

    `least_seconds` is the roofline's, and `over_least` how many times that it takes (None for groups without any
    counted work). `arithmetic_share` is how much of the least time belongs to operations that arithmetic bounds.
    """

    group: str
    flops: int
    flops_share: float
    seconds: float
    time_share: float
    flops_per_second: float
    bytes_moved: int
    least_seconds: float
    over_least: float | None
    arithmetic_share: float


@dataclass(frozen=True)
class OperationRow:
    """One of torch's operations (on a GPU: a kernel) in one group: time of its own, without operations inside."""

    name: str
    group: str
    calls: float
    seconds: float
    time_share: float


@dataclass(frozen=True)
class Profile:
    """One step, taken apart. Seconds are per step; the rows' add up to `traced_seconds`, to rounding.

    step_seconds: a step without the profiler, to hold `traced_seconds` against; both are means of the faster half.
    spread: the slowest step over the fastest, which says how busy the machine was.
    interpreter_share: of the host's time, in no operation of torch.
    waiting_share: on a GPU, of the step in which no kernel ran.
    """

    settings: ProfileSettings
    context_length: int
    device: Ceiling
    step_seconds: float
    spread: float
    traced_seconds: float
    groups: tuple[GroupRow, ...]
    operations: tuple[OperationRow, ...]
    interpreter_share: float
    waiting_share: float
    memory: Timeline

    @property
    def overhead(self) -> float:
        """What the profiler adds: 0.1 is a tenth of a step."""
        return self.traced_seconds / self.step_seconds - 1.0

    @property
    def disturbed(self) -> bool:
        """Whether steps differed so much that something else must have used the machine."""
        return self.spread > STEADY

    @property
    def unattributed_share(self) -> float:
        """The share of time in group "other"."""
        return self.group(OTHER).time_share

    @property
    def tokens_per_second(self) -> float:
        """Tokens that go in, per second of a step without the profiler."""
        tokens = self.settings.batch_size * (1 if self.settings.phase == "decode" else self.context_length)
        return tokens / self.step_seconds

    def group(self, name: str) -> GroupRow:
        """The row of this group."""
        return next(row for row in self.groups if row.group == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in profile.json; the memory's points are in memory.json."""
        data = asdict(self)
        seconds, _, group = self.memory.peak
        data["memory"] = {
            "resident_bytes": self.memory.resident_bytes, "peak_bytes": self.memory.peak_bytes,
            "peak_at_seconds": seconds, "peak_group": group,
        }  # fmt: skip
        shown = ("overhead", "disturbed", "unattributed_share", "tokens_per_second")
        return data | {name: getattr(self, name) for name in shown}


def group_rows(work: Sequence[Work], spent: Spent, device: Ceiling) -> tuple[GroupRow, ...]:
    """FLOPs and least time of the ledger's rows beside the time of the trace, by group."""
    table = by_group(work)
    all_flops = sum(row.flops for row in work)
    return tuple(_group_row(name, table[name], all_flops, spent, device) for name in GROUPS)


def _group_row(name: str, rows: list[Work], all_flops: int, spent: Spent, device: Ceiling) -> GroupRow:
    flops, seconds = sum(row.flops for row in rows), spent.groups.get(name, 0.0) / spent.steps
    least = sum(row.least_seconds(device) for row in rows)
    arithmetic = sum(row.least_seconds(device) for row in rows if row.bound(device) == "compute")
    return GroupRow(
        group=name,
        flops=flops,
        flops_share=flops / all_flops,
        seconds=seconds,
        time_share=seconds * spent.steps / spent.seconds,
        flops_per_second=flops / seconds if seconds else 0.0,
        bytes_moved=sum(row.bytes_moved for row in rows),
        least_seconds=least,
        over_least=seconds / least if least else None,
        arithmetic_share=arithmetic / least if least else 0.0,
    )


def operation_rows(spent: Spent) -> tuple[OperationRow, ...]:
    """All operations, the longest first."""
    ordered = sorted(spent.operations, key=lambda key: -spent.operations[key])
    return tuple(
        OperationRow(
            *key,
            spent.calls[key] / spent.steps,
            spent.operations[key] / spent.steps,
            spent.operations[key] / spent.seconds,
        )  # fmt: skip
        for key in ordered
    )
