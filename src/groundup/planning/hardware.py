"""What a plan runs on: how fast a rank computes, how much it holds, and how ranks are connected; measured or promised.

A pass through one layer takes

    seconds = layer_seconds + FLOPs / (flops x shrunk[T])

`layer_seconds` is what a layer costs however small it is (launching its operations), and shrunk[T] the share of the
rate that is left when its matrices are cut over T ranks: narrow products are slower per FLOP. Both are measured where
they can be (`measure.py`); from a data sheet they are 0 and 1, and the plan says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from groundup.accounting.communication import AROUND
from groundup.accounting.devices import Cluster
from groundup.accounting.doctor.saved import SavedCard
from groundup.parallel.plan import ParallelPlan
from groundup.planning.links import Link, Network

MEMORY_SHARE = 0.9
"""Of a device's memory; the rest is for buffers of messages, fragments and the context of the driver."""

PCIE_BANDWIDTH = 25e9
"""Bytes per second and direction for devices without a link of their own: 16 lanes of PCIe 4, of 32 on paper."""

LATENCY, BETWEEN = 5e-6, Link(10e-6, 50e9)
"""Seconds of a message within a machine; between machines a network card of 400 Gbit/s per device. Assumptions: what a
machine has is measured with `groundup doctor --links --save`."""

PER_MACHINE = 8

BETWEEN_RANKS = (*AROUND, "send", "peer copy")
"""What of a card's links are messages between ranks; others go to the host."""


@dataclass(frozen=True)
class Speed:
    """FLOP/s that a rank reaches in training, and what changes it; see above."""

    flops: float
    layer_seconds: float = 0.0
    shrunk: Mapping[int, float] = field(default_factory=dict)

    def seconds(self, flops: float, tensor: int = 1, layers: int = 1) -> float:
        """Of that many FLOPs in one pass through `layers`, on matrices cut over `tensor` ranks."""
        return layers * self.layer_seconds + flops / (self.flops * self.share(tensor))

    def share(self, tensor: int) -> float:
        """Of the rate at this cut: measured, else that of the nearest smaller one that was."""
        return self.shrunk[max(known)] if (known := [t for t in self.shrunk if t <= tensor]) else 1.0


@dataclass(frozen=True)
class Hardware:
    """memory_bytes: what a rank may hold. memory_bandwidth: bytes per second, read and written, for the update.
    overlaps: whether a rank computes while it sends; cores that do both do not. said: where each figure is from.
    cores: where ranks are processes that share so many of them; `speed` is then that of a rank while all are busy, and
    one that waits leaves its share to the others.
    """

    name: str
    speed: Speed
    memory_bytes: float
    memory_bandwidth: float
    network: Network
    overlaps: bool = True
    cores: int | None = None
    said: tuple[str, ...] = ()

    def busy_stages(self, plan: ParallelPlan) -> int:
        """How many stages of a pipeline can compute at a time: all, unless ranks share cores."""
        if self.cores is None:
            return plan.pipeline
        return min(plan.pipeline, max(1, plan.pipeline * self.cores // plan.size))


def hardware_of(
    cluster: Cluster,
    mfu: float,
    card: SavedCard | None = None,
    between: Link | None = None,
    shrunk: Mapping[int, float] | None = None,
) -> Hardware:
    """Of a cluster's devices: `card` has the links of one machine, where `groundup doctor --links` measured them.

    mfu: the share of the rate of matrix products that training reaches, messages and update not counted.
    """
    device, measured = cluster.device, cluster.measured
    network, said = network_of(cluster, card, between)
    rate = f"{cluster.device_flops / 1e12:,.0f} TFLOP/s"
    flops = f"measured: {rate} of matrix products ({measured.source})" if measured else f"{rate} by the data sheet"
    cuts = "measured: " + ", ".join(f"{t}: {share:.2f}" for t, share in sorted((shrunk or {}).items()))
    return Hardware(
        cluster.name,
        Speed(mfu * cluster.device_flops, shrunk=shrunk or {}),
        MEMORY_SHARE * device.memory_bytes,
        measured.bandwidth if measured else device.bandwidth,
        network,
        said=(
            f"arithmetic: {flops}, of which training is assumed to reach {mfu:g}",
            f"share of that rate by tensor=T: {cuts if shrunk else 'not measured, taken as 1'}",
            f"memory: {MEMORY_SHARE:g} of {device.memory_bytes / 1e9:,.0f} GB; for the update "
            f"{(measured.bandwidth if measured else device.bandwidth) / 1e9:,.0f} GB/s, "
            + ("measured" if measured else "by the data sheet"),
            *said,
        ),
    )  # fmt: skip


def network_of(cluster: Cluster, card: SavedCard | None, between: Link | None) -> tuple[Network, list[str]]:
    """(links, where they are from): the card's where it has them, else the data sheet's half of both directions."""
    per_machine = card.count if card else min(cluster.count, PER_MACHINE)
    inside, how, measured = _promised(cluster), "", {}
    if card is not None:
        links = [link for link in card.links if link.what in BETWEEN_RANKS]
        measured = {(link.what, link.ranks): Link(link.hop_seconds, link.bandwidth) for link in links}
    if card is not None and measured:
        slowest = min(measured.values(), key=lambda link: link.bandwidth)
        inside = measured.get(("all-reduce", card.count), slowest)
        how = f"measured: {card.node}, {card.date[:10]}"
    else:
        how = f"{'by the data sheet' if cluster.device.link else 'assumed for PCIe'}, latency assumed"
    said = [f"within a machine of {per_machine}: {_words(inside)}, {how}"]
    if cluster.count > per_machine:
        said.append(f"between machines: {_words(between or BETWEEN)}, {'given' if between else 'assumed'}")
    return Network(inside, per_machine, between or BETWEEN, measured), said


def _promised(cluster: Cluster) -> Link:
    return Link(LATENCY, cluster.device.link / 2 if cluster.device.link else PCIE_BANDWIDTH)


def _words(link: Link) -> str:
    return f"{link.bandwidth / 1e9:,.3g} GB/s and {1e6 * link.latency:,.3g} us a message"
