"""The device card on disk, for who plans later: `groundup doctor --save` writes it, `groundup plan` reads it.

Only figures that a plan uses are kept. A file is not trusted: what is no card is refused, with its place.
"""

import datetime
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from groundup.accounting.communication import hops
from groundup.accounting.devices import Cluster, Device, Measured, recognise
from groundup.accounting.doctor.card import Card
from groundup.accounting.doctor.links import Link
from groundup.config import from_dict, to_dict
from groundup.environ import cache_directory
from groundup.files import read_json, write_json

FORMAT = 1
MOST_FILE_BYTES = 2**20


@dataclass(frozen=True)
class SavedLink:
    """As `links.Link`, whose kind is `what` here, without its single transfers. `ranks` took part in it."""

    what: str
    between: str
    latency_seconds: float
    bandwidth: float
    ranks: int = 2

    def __post_init__(self) -> None:
        _check(latency_seconds=self.latency_seconds, bandwidth=self.bandwidth, ranks=self.ranks - 1)

    @property
    def hop_seconds(self) -> float:
        """Of one message without bytes: collectives make several, one after the other."""
        return self.latency_seconds / hops(self.what, self.ranks)


@dataclass(frozen=True)
class SavedCard:
    """`count` devices called `name` by their driver, on the machine `node`, as they were at `date` (ISO 8601).

    flops: per second and device, by type. bandwidth: of a device's memory, copied, both ways counted.
    """

    name: str
    count: int
    node: str
    date: str
    flops: dict[str, float]
    bandwidth: float
    links: tuple[SavedLink, ...] = field(default=())

    def __post_init__(self) -> None:
        _check(count=self.count, bandwidth=self.bandwidth, **{f"flops.{name}": r for name, r in self.flops.items()})

    @property
    def link(self) -> SavedLink | None:
        """The one that training's messages take: the all-reduce of all devices, else the slowest copy between two."""
        for kind in ("all-reduce", "peer copy"):
            if found := [link for link in self.links if link.what == kind]:
                return min(found, key=lambda link: link.bandwidth)
        return None

    def measured(self, device: Device) -> Measured:
        """For a plan. ValueError where the rate in the type that training uses was not measured."""
        dtype = "bf16" if device.bf16 else "fp16"
        if dtype not in self.flops:
            raise ValueError(f"the card of {self.name} has no rate of {dtype}; make it again: groundup doctor --save")
        latency, bandwidth = (self.link.latency_seconds, self.link.bandwidth) if self.link else (None, None)
        return Measured(self.flops[dtype], self.bandwidth, bandwidth, latency, f"{self.node}, {self.date[:10]}")


def card_path() -> Path:
    """Where the card of this machine is kept."""
    return cache_directory() / "doctor.json"


def device_count(device: torch.device) -> int:
    """How many devices of this kind the machine has; a CPU is one."""
    return torch.cuda.device_count() if device.type == "cuda" else 1


def saved(card: Card, links: Sequence[Link], count: int) -> SavedCard:
    """What is kept of a card and of the links that were measured."""
    rates: dict[str, float] = {}
    for rate in card.rates:
        if rate.flops:
            rates[rate.dtype] = max(rates.get(rate.dtype, 0.0), rate.flops)
    kept = (
        SavedLink(way.kind, way.between, way.latency_seconds, way.bandwidth, way.ranks)
        for way in links if way.latency_seconds and way.bandwidth
    )  # fmt: skip
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return SavedCard(card.name, count, platform.node() or "unknown", now, rates, card.memory.copy, tuple(kept))


def save_card(card: SavedCard, path: Path | None = None) -> Path:
    """Write it, and say where. OSError where the place cannot be written."""
    path = path or card_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"format": FORMAT, **to_dict(card)})
    return path


def load_card(path: Path | None = None) -> SavedCard:
    """ValueError for a file that is no card, with the place of what is wrong; OSError where there is none."""
    path = path or card_path()
    if path.stat().st_size > MOST_FILE_BYTES:
        raise ValueError(f"{path}: larger than {MOST_FILE_BYTES // 2**20} MiB, so this is no card of groundup doctor")
    stored = read_json(path)
    if not isinstance(stored, dict) or stored.pop("format", None) != FORMAT:
        raise ValueError(f'{path}: expected an object with "format": {FORMAT}, as groundup doctor --save writes it')
    return from_dict(SavedCard, stored, str(path))


def with_card(cluster: Cluster, card: SavedCard) -> Cluster:
    """The cluster with what the card measured. ValueError where the card is of other devices, or of fewer."""
    if recognise(card.name) is not cluster.device:
        raise ValueError(f"the card is of {card.name}, and the plan is for {cluster.device.name}")
    if cluster.count > card.count:
        raise ValueError(
            f"the card is of a machine with {card.count} x {card.name}: what lies between machines was not measured, "
            f"so it does not tell about {cluster.count}"
        )
    return Cluster(cluster.device, cluster.count, card.measured(cluster.device))


def _check(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value}; expected a positive number")
