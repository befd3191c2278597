"""Which placement of a model on devices a plan takes: of those that fit into memory, the fastest or the roomiest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from groundup.accounting.devices import Cluster
from groundup.accounting.flops import training_flops_per_token
from groundup.accounting.memory import training_memory
from groundup.accounting.napkin import ADAMW_BYTES
from groundup.accounting.params import count_parameters
from groundup.accounting.placement import Placement, communication_seconds, cut, placements, update_seconds
from groundup.model import ModelConfig

MEMORY_SHARE = 0.9

RECOMPUTED = 4 / 3
"""Arithmetic of a step in which every forward pass is done twice, over that of one in which it is not."""


@dataclass(frozen=True)
class Fit:
    """A placement with the passes of a step that fit, one device's bytes, and seconds of a step: of arithmetic, and of
    messages and update where they are known."""

    way: Placement
    micro_batch: int
    passes: int
    recompute: bool
    peak_bytes: int
    arithmetic: float
    messages: float | None
    update: float | None

    @property
    def seconds(self) -> float:
        return self.arithmetic + (self.messages or 0.0) + (self.update or 0.0)


def chosen(model: ModelConfig, rows: int, mfu: float, cluster: Cluster) -> Fit:
    """Where messages are known the way of least time; else the roomiest that fits, without tensor parallelism.

    `rows` are those of a step, `mfu` is the share of the peak. The roomiest: whole copies before shards, more rows
    before fewer, and plain before recomputed. ValueError where none fits: it says how many devices would do.
    """
    link = cluster.measured
    known = link is not None and (cluster.count == 1 or link.link_bandwidth is not None)
    fits = (
        _fit(model, rows, way, recompute, mfu, cluster, known)
        for way in placements(model, cluster.count) if known or way.tensor == 1
        for recompute in (False, True)
    )  # fmt: skip
    found = (fit for fit in fits if fit is not None)
    best = min(found, key=lambda fit: fit.seconds, default=None) if known else next(found, None)
    if best is None:
        raise _too_large(model, cluster)
    return best


def _fit(
    model: ModelConfig, rows: int, way: Placement, recompute: bool, mfu: float, cluster: Cluster, known: bool
) -> Fit | None:
    """Of this way, with as many rows in a pass as fit; None where not one does."""
    part, each = cut(model, way.tensor), math.ceil(rows / way.data)
    own = count_parameters(part).total
    state = ADAMW_BYTES * own / (way.data if way.sharding == "full" else 1)
    fixed, per_row = _work(part, recompute)
    room = MEMORY_SHARE * cluster.device.memory_bytes - state - fixed
    micro = next((micro for micro in _halvings(each) if micro * per_row <= room), None)
    if micro is None:
        return None
    passes, messages, update = math.ceil(each / micro), None, None
    work = rows / way.data * model.context_length * training_flops_per_token(part, model.context_length)
    if known and cluster.measured:
        messages = communication_seconds(way, model, own, micro, passes, recompute, cluster.measured)
        update = update_seconds(way, own, cluster.measured.bandwidth)
        work *= RECOMPUTED if recompute else 1.0
    peak = int(state + fixed + micro * per_row)
    return Fit(way, micro, passes, recompute, peak, work / (cluster.device_flops * mfu), messages, update)


def _too_large(model: ModelConfig, cluster: Cluster) -> ValueError:
    parameters = count_parameters(model).total
    room, least = MEMORY_SHARE * cluster.device.memory_bytes, sum(_work(model, True))
    needed = "more memory than this even for one row"
    if least < room:
        needed = f"at least {math.ceil(ADAMW_BYTES * parameters / (room - least))} of them, sharded"
    return ValueError(
        f"plan: {parameters / 1e9:,.2f} B parameters do not fit into {cluster.name}, {room / 1e9:,.0f} GB each; "
        f"it takes {needed}"
    )


@cache
def _work(model: ModelConfig, recompute: bool) -> tuple[int, int]:
    """Bytes of a pass beside the training state: of any, and of each row. Activations grow by the row."""
    once, twice = (
        training_memory(model, rows, model.context_length, torch.bfloat16, recompute=recompute) for rows in (1, 2)
    )
    per_row = twice.activations - once.activations
    return once.cast_weights + once.logits + once.activations - per_row, per_row


def _halvings(rows: int) -> Sequence[int]:
    """rows, and its halves down to 1.

    >>> _halvings(12)
    [12, 6, 3, 1]
    """
    found = [max(1, rows)]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found
