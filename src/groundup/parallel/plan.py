"""One plan for both engines: how many ranks work along each axis, and which ranks those are.

    ParallelPlan(data=2, tensor=2)       ranks     0  1     0 and 1 share every layer, on the same rows (tensor)
                                                   2  3     0 and 2 have the same slices, and other rows (data)

An axis divides something among its ranks:

    pipeline  the layers                                 data     the rows of a batch
    expert    the rows, and the experts                  shard    the rows, and all parameters (ZeRO-3)
    context   the positions of a row                     tensor   the channels and heads of a layer

The ranks are a grid, the last of `AXES` counting fastest. What talks most is innermost, where links are fastest: tensor
parallelism sends activations several times in each layer, pipelines a few times in a step. Narayanan et al. 2021
(arXiv:2104.04473, section 5.8).
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import product
from math import prod
from typing import Literal

import torch.distributed as dist

from groundup.config import nearest, override
from groundup.parallel.schedules import NAMES as SCHEDULES

AXES = ("pipeline", "data", "shard", "expert", "context", "tensor")
"""From the outermost, whose ranks are farthest from each other, to the innermost."""

ROWS = ("data", "shard", "expert")
"""Axes along which ranks have other rows of the batch."""

TOKENS = (*ROWS, "context")
"""Axes along which ranks have other tokens, so that gradients are summed over them."""

_NEEDS = {
    "zero": "data", "sequence": "tensor", "microbatches": "pipeline", "schedule": "pipeline", "chunks": "pipeline",
    "method": "context",
}  # fmt: skip
_METHODS = ("ring", "gather")
_TOGETHER = (
    ROWS,
    TOKENS,
    ("data", "expert"),
    ("data", "context"),
    ("expert", "context"),
    ("data", "expert", "context"),
)


@dataclass(frozen=True)
class ParallelPlan:
    """Ranks along each axis, whose product is the number of ranks, and what else there is to choose.

    zero: 1 or 2 divides the optimizer's state (2: and the gradients) among the ranks of `data`, instead of a copy each.
    sequence: with `tensor`, norms and residual sums on a part of the positions each.
    microbatches: of each batch, with `pipeline`; `schedule` says in which order they run, `chunks` how many stages each
    rank has (more than one: "interleaved").
    method: of `context`; see `context.py`.
    recompute: blocks keep only their inputs for the backward pass.

    Raises ValueError for a count below 1, and for what has no effect in this plan.
    """

    data: int = 1
    shard: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    zero: Literal[0, 1, 2] = 0
    sequence: bool = False
    schedule: str = "1f1b"
    microbatches: int = 1
    chunks: int = 1
    method: Literal["ring", "gather"] = "ring"
    recompute: bool = False

    def __post_init__(self) -> None:
        for name in (*AXES, "microbatches", "chunks"):
            if getattr(self, name) < 1:
                raise ValueError(f"plan: {name}={getattr(self, name)}; expected at least 1")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"plan: schedule {self.schedule!r} is unknown{nearest(self.schedule, SCHEDULES)}")
        if self.method not in _METHODS:
            raise ValueError(f"plan: method {self.method!r} is unknown{nearest(self.method, _METHODS)}")
        if self.zero not in (0, 1, 2):
            raise ValueError(f"plan: zero={self.zero}; expected 0, 1 or 2 (stage 3 is shard=N)")
        for name, axis in _NEEDS.items():
            if getattr(self, name) != getattr(type(self), name) and getattr(self, axis) == 1:
                raise ValueError(f"plan: {name}={getattr(self, name)} needs {axis}=2 or more")
        if (self.chunks > 1) != (self.schedule == "interleaved"):
            raise ValueError(f'plan: chunks={self.chunks} with schedule={self.schedule!r}; "interleaved" has 2 or more')

    @property
    def size(self) -> int:
        """The number of ranks."""
        return prod(getattr(self, axis) for axis in AXES)

    @property
    def text(self) -> str:
        """What differs from one process, as `parse` reads it: "data=2 tensor=2"."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return " ".join(f"{name}={value}" for name, value in named.items() if value != getattr(type(self), name))

    @classmethod
    def parse(cls, words: str | Iterable[str]) -> "ParallelPlan":
        """From "data=2 tensor=2". ValueError for an unknown axis, naming the nearest, and as the class itself."""
        return override(cls(), *(words.split() if isinstance(words, str) else words))

    def coordinates(self, rank: int) -> dict[str, int]:
        """Where the rank is along each axis.

        >>> ParallelPlan(data=2, tensor=2).coordinates(1)["tensor"]
        1
        """
        where = {}
        for axis in reversed(AXES):
            rank, where[axis] = divmod(rank, getattr(self, axis))
        return where

    def groups(self, axes: Iterable[str]) -> list[list[int]]:
        """The ranks that differ along these axes only, in groups: every rank is in one.

        >>> ParallelPlan(data=2, tensor=2).groups(["data"])
        [[0, 2], [1, 3]]
        """
        together = set(axes)
        found: dict[tuple[int, ...], list[int]] = {}
        for rank, place in enumerate(product(*(range(getattr(self, axis)) for axis in AXES))):
            fixed = tuple(at for axis, at in zip(AXES, place, strict=True) if axis not in together)
            found.setdefault(fixed, []).append(rank)
        return list(found.values())


class Mesh:
    """The process groups of a plan. A collective: every rank makes the same, in the same order.

    mesh.group("tensor") is this rank's group along an axis, mesh.group(*TOKENS) along several. `rows` is which part of
    the batch's rows this rank has, out of `row_parts`.

    Raises ValueError where the plan is for another number of ranks.
    """

    def __init__(self, plan: ParallelPlan) -> None:
        if plan.size != dist.get_world_size():
            here = dist.get_world_size()
            raise ValueError(f"plan: {plan.text or 'one process'} is for {plan.size} ranks; here are {here}")
        self.plan, self.rank = plan, dist.get_rank()
        self.place = plan.coordinates(self.rank)
        self._groups: dict[frozenset[str], dist.ProcessGroup] = {}
        for axes in [*((axis,) for axis in AXES), *_TOGETHER]:
            self._make(axes)

    def group(self, *axes: str) -> dist.ProcessGroup:
        """This rank's group along the axes together. KeyError for a combination that the mesh does not have."""
        return self._groups[frozenset(axes)]

    def size(self, *axes: str) -> int:
        """Ranks along the axes together."""
        return prod(getattr(self.plan, axis) for axis in axes)

    @property
    def row_parts(self) -> int:
        """In how many parts the rows of a batch are divided."""
        return self.size(*ROWS)

    @property
    def rows(self) -> int:
        """Which of the parts this rank has."""
        index = 0
        for axis in ROWS:
            index = index * getattr(self.plan, axis) + self.place[axis]
        return index

    def _make(self, axes: tuple[str, ...]) -> None:
        parts = self.plan.groups(axes)
        for known, group in self._groups.items():
            if self.plan.groups(known) == parts:
                self._groups[frozenset(axes)] = group
                return
        for ranks in parts:
            group = dist.new_group(ranks)
            if self.rank in ranks:
                self._groups[frozenset(axes)] = group  # type: ignore[assignment]
