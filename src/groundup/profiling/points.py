"""The operations of a profiled step as points of a roofline chart: FLOPs per byte, and FLOP/s as measured.

A group is one point, except that matrix products stand apart from what else its module does (activation, loss): the
two lie at opposite ends of the chart. FLOPs and bytes are those of the ledger, the time is that of the trace. What has
no FLOPs (the embedding's lookup, casts, the data) has no place in such a chart.
"""

from dataclasses import dataclass

from groundup.accounting.hardware import Machine
from groundup.accounting.roofline import Ceiling, Work, step_work
from groundup.model import ModelConfig
from groundup.profiling.groups import FEED_FORWARD, HEAD, PROJECTIONS, by_group
from groundup.profiling.result import Profile
from groundup.train.precision import DTYPES

PRODUCTS = frozenset(
    f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "_grouped_mm", "mkldnn_linear")
)
"""torch's names for matrix products on a CPU; on a GPU kernels have other names, and groups stay whole."""

_REST = {PROJECTIONS: "casts", FEED_FORWARD: "activation", HEAD: "loss"}
_PRODUCT_NAMES = {PROJECTIONS: "attention projections", FEED_FORWARD: "feed-forward products", HEAD: "head"}


@dataclass(frozen=True)
class RooflinePoint:
    """One operation of one step, with the seconds that it took."""

    name: str
    flops: int
    bytes_moved: int
    seconds: float

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes_moved

    @property
    def flops_per_second(self) -> float:
        """As measured."""
        return self.flops / self.seconds

    def roof(self, device: Ceiling) -> float:
        """The most FLOP/s that the device allows at this intensity: min(peak, intensity x bandwidth)."""
        return min(device.peak_flops, self.intensity * device.bandwidth)


def roofline_points(config: ModelConfig, profile: Profile, machine: Machine) -> list[RooflinePoint]:
    """The points of a profile of this model on this machine, the one with most time first."""
    settings = profile.settings
    precision = machine.precision if settings.precision == "auto" else settings.precision
    work = step_work(
        config, settings.phase, batch=settings.batch_size, seq=profile.context_length,
        dtype=DTYPES[precision], optimizer=settings.optimizer,
    )  # fmt: skip
    points = [p for group, rows in by_group(work).items() for p in _points(group, rows, profile)]
    return sorted((p for p in points if p.flops and p.seconds > 0), key=lambda p: -p.seconds)


def _points(group: str, rows: list[Work], profile: Profile) -> list[RooflinePoint]:
    seconds = profile.group(group).seconds
    products = sum(o.seconds for o in profile.operations if o.group == group and o.name in PRODUCTS)
    if group not in _REST or not products:
        return [_point(group, rows, seconds)] if rows else []
    matmuls = [row for row in rows if row.kind == "matmul"]
    rest = [row for row in rows if row.kind != "matmul"]
    both = [_point(_PRODUCT_NAMES[group], matmuls, products)]
    return [*both, *([_point(_REST[group], rest, seconds - products)] if rest else [])]


def _point(name: str, rows: list[Work], seconds: float) -> RooflinePoint:
    return RooflinePoint(name, sum(row.flops for row in rows), sum(row.bytes_moved for row in rows), seconds)
