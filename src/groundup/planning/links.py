"""How long messages take: the alpha-beta model on two levels, within a machine and between machines.

    seconds = alpha x messages one after the other + bytes that a rank sends / bandwidth

    machine 0   [ 0  1  2  3 ]      a group inside of a machine uses `inside`. A ring over machines leaves each of them
                  |  |  |  |        once for every rank that it has there, all at the same time:
    machine 1   [ 4  5  6  7 ]      m ranks of a machine reach m times the bandwidth `between`, at most that of `inside`

Hockney 1994, "The communication challenge for MPP". Rings over machines: NCCL opens as many as there are ranks with a
network card of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from groundup.accounting.communication import Traffic


@dataclass(frozen=True)
class Link:
    """latency: seconds of a message without bytes. bandwidth: bytes per second that a rank sends."""

    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        if not self.latency >= 0 or not self.bandwidth > 0:
            raise ValueError(f"link: latency {self.latency} s, {self.bandwidth} bytes/s; expected a time and a rate")


@dataclass(frozen=True)
class Network:
    """The links between `per_machine` ranks of one machine, and between machines (None: there is only one).

    measured: for single operations on a number of ranks, where they were measured apart: their messages are not always
    as fast as `inside` says, which is for all others.
    """

    inside: Link
    per_machine: int
    between: Link | None = None
    measured: Mapping[tuple[str, int], Link] = field(default_factory=dict)

    def seconds(self, traffic: Traffic, together: int) -> float:
        """Of all messages of this kind in a step, when a machine holds `together` ranks of their group.

        ValueError where the group spans machines and what lies between them is not known.
        """
        link = self.link(traffic, together)
        return traffic.messages * link.latency + traffic.sent / link.bandwidth

    def link(self, traffic: Traffic, together: int) -> Link:
        """What the messages see: the ring's mean latency, and the bandwidth of its slowest part."""
        if traffic.ranks <= together:
            return self.measured.get((traffic.operation, traffic.ranks), self.inside)
        if self.between is None:
            raise ValueError(f"{traffic.ranks} ranks along {traffic.axis} span machines of {self.per_machine}: "
                             "say what lies between them")  # fmt: skip
        outward = 1 / together if traffic.operation != "send" else 1.0
        latency = outward * self.between.latency + (1 - outward) * self.inside.latency
        together = together if traffic.operation != "send" else 1
        return Link(latency, min(self.inside.bandwidth, together * self.between.bandwidth))


def together(sizes: Sequence[tuple[int, bool]], per_machine: int) -> int:
    """How many ranks of a group are on one machine, for (ranks along the axis, whether the group runs along it) of all
    axes from the innermost: ranks count through the innermost first, and machines are filled in that order.

    >>> together([(4, True), (4, False)], 8), together([(4, False), (4, True)], 8), together([(16, True)], 8)
    (4, 2, 8)
    """
    found = stride = 1
    for size, along in sizes:
        if along:
            found *= max(1, min(size, per_machine // stride))
        stride *= size
    return found
