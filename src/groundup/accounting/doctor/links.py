"""Links: what it takes to get bytes from one place to another, as latency and bandwidth that a planner can use.

A message of n bytes takes about latency + n / bandwidth seconds. The time of the smallest message is nearly all
latency, the largest shows the bandwidth, and sizes in between show where one gives way to the other.
"""

import json
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from groundup.accounting.communication import wire_share
from groundup.accounting.doctor import child
from groundup.accounting.doctor.matmul import fastest
from groundup.device import synchronize

SIZES = tuple(2**power for power in range(12, 25, 2))  # 4 KiB to 16 MiB
COLLECTIVES = ("send", "all-reduce", "all-gather", "reduce-scatter", "all-to-all")
CHILD_SECONDS = 90.0


@dataclass(frozen=True)
class Transfer:
    """One size: bytes of the message (all-gather: of the whole result), and seconds, the median of several."""

    bytes: int
    seconds: float


@dataclass(frozen=True)
class Link:
    """A way for bytes. `bandwidth` is bytes per second on the wire that each device sends, at the largest size.

    kind: `send` (from one rank to the next), `all-reduce`, `all-gather`, `peer copy`, `host to device`, ... between:
    what is linked, in words. ranks: how many took part. error: why there are no figures.
    """

    kind: str
    between: str
    latency_seconds: float | None = None
    bandwidth: float | None = None
    transfers: tuple[Transfer, ...] = ()
    error: str = ""
    ranks: int = 2


def link(kind: str, between: str, transfers: Iterable[Transfer], ranks: int = 2) -> Link:
    """A link with its two figures, from transfers of several sizes. Bytes are those that each rank sends
    (`communication.wire_share`), so that a rate is the link's, whatever the number of ranks ("bus bandwidth" in NCCL's
    tests).
    """
    found = tuple(sorted(transfers, key=lambda transfer: transfer.bytes))
    if not found:
        return Link(kind, between, error="nothing was measured")
    largest = found[-1]
    bandwidth = wire_share(kind, ranks) * largest.bytes / largest.seconds
    return Link(kind, between, found[0].seconds, bandwidth, found, ranks=ranks)


def seconds_for(way: Link, wire_bytes: float) -> float:
    """Latency + bytes on the wire / bandwidth: what a planner assumes. ValueError for a link without figures.

    `wire_bytes` are those that each device sends: the message times `wire_share`.
    """
    if way.latency_seconds is None or way.bandwidth is None:
        raise ValueError(f"{way.kind} {way.between}: not measured ({way.error})")
    return way.latency_seconds + wire_bytes / way.bandwidth


def measure_links(device: torch.device, ranks: int = 2) -> list[Link]:
    """Every link that there is here; those that there are not say so.

    On a CPU `ranks` local processes over gloo; on GPUs all of them over NCCL, copies from the first to each other, and
    copies from and to the host's memory.
    """
    if ranks < 2:
        raise ValueError(f"{ranks} ranks: a link has two ends; expected at least 2")
    if device.type != "cuda":
        return [*collectives("gloo", ranks), Link("peer copy", "GPUs", error=f"no GPU is used here ({device})")]
    return [*host_copies(device), *_between_gpus(torch.cuda.device_count())]


def _between_gpus(count: int) -> list[Link]:
    if count < 2:
        return [Link(kind, "GPUs", error="one GPU alone") for kind in ("peer copy", *COLLECTIVES)]
    pairs = [(0, other) for other in range(1, count)]
    return [*(peer_copy(*pair) for pair in pairs), *collectives("nccl", count)]


def collectives(backend: str, ranks: int, sizes: Iterable[int] = SIZES, timeout: float = CHILD_SECONDS) -> list[Link]:
    """A send from each rank to the next, and what collectives reach, between processes of one thread each."""
    between = f"{ranks} {'GPUs' if backend == 'nccl' else 'processes'} ({backend})"
    wanted, deadline = json.dumps(list(sizes)), time.monotonic() + timeout
    with tempfile.TemporaryDirectory(prefix="groundup-links-") as folder:
        arguments = [backend, str(ranks), f"{folder}/store", wanted]
        processes = [child.start(f"{__package__}.link_rank", str(rank), *arguments) for rank in range(ranks)]
        ends = [child.finish(process, max(0.1, deadline - time.monotonic())) for process in processes]
    if errors := [error for _, error in ends if error]:
        return [Link(kind, between, error=errors[0]) for kind in COLLECTIVES]
    found = json.loads(ends[0][0].splitlines()[-1])
    return [link(kind, between, (Transfer(*row) for row in found[kind]), ranks) for kind in COLLECTIVES]


def host_copies(device: torch.device, seconds: float = 0.05) -> list[Link]:
    """To the device and back, from pinned memory, which it reads by itself, and from memory that is copied first."""
    found = []
    for pinned in (True, False):
        memory = "pinned" if pinned else "pageable"
        for kind in ("host to device", "device to host"):
            rows = [_host_copy(device, kind, size, pinned, seconds) for size in SIZES]
            found.append(link(kind, f"{memory} memory and {device}", rows))
    return found


def _host_copy(device: torch.device, kind: str, size: int, pinned: bool, seconds: float) -> Transfer:
    host = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned)
    there = torch.zeros(size, dtype=torch.uint8, device=device)
    source, target = (host, there) if kind == "host to device" else (there, host)
    return Transfer(size, fastest(device, lambda: target.copy_(source, non_blocking=pinned), seconds))


def peer_copy(first: int, second: int, seconds: float = 0.05) -> Link:
    """From one GPU's memory to another's, directly where they can reach each other, else by way of the host."""
    direct = torch.cuda.can_device_access_peer(first, second)
    between = f"cuda:{first} and cuda:{second} ({'direct' if direct else 'by way of the host'})"
    return link("peer copy", between, (_peer_copy(first, second, size, seconds) for size in SIZES))


def _peer_copy(first: int, second: int, size: int, seconds: float) -> Transfer:
    source = torch.zeros(size, dtype=torch.uint8, device=f"cuda:{first}")
    target = torch.zeros(size, dtype=torch.uint8, device=f"cuda:{second}")

    def copy() -> None:
        target.copy_(source)
        synchronize(source.device)

    return Transfer(size, fastest(target.device, copy, seconds))
