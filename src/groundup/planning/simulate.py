"""One step of a plan, event by event, on up to thousands of ranks.

Ranks that differ in their place along data, shard, tensor, context or expert do the same at the same time, so one lane
for each pipeline stage stands for all of them: 4,096 ranks in 16 stages are 16 lanes. A lane has a compute stream and a
stream of messages for each axis (a pipeline has one for each direction):

    compute    [ forward 1 ]      [ forward 2 ]      [ forward 3 ]
    tensor                  [sum]              [sum]              [sum]         the next layer waits for these
    shard      [ gather 2 ]       [ gather 3 ]                                  and for these, which began a layer ahead

Where a rank cannot compute while it sends (`Hardware.overlaps`), all is one stream. `shared_link` gives all axes of a
lane one stream of messages instead of one each: they then wait for each other. Where ranks share cores
(`Hardware.cores`), a stage computes when one is free, and faster than among busy ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from groundup.parallel.plan import ParallelPlan
from groundup.parallel.schedules import Action, needed, schedule
from groundup.planning.events import Done, Task, run
from groundup.planning.hardware import Hardware
from groundup.planning.job import Job
from groundup.planning.predict import passes, update_seconds
from groundup.planning.units import Chunk, Costs, Exchange, Unit

COMPUTE = ("forward", "recompute", "backward", "update")
"""Kinds of tasks that are arithmetic; all others are messages, named by their axis."""


@dataclass(frozen=True)
class Lane:
    """What `ranks` ranks, from `first` on, do alike. busy: seconds of arithmetic; exposed: seconds of messages beside
    which nothing is computed."""

    first: int
    ranks: int
    done: list[Done]
    busy: float
    exposed: float

    @property
    def name(self) -> str:
        return f"rank {self.first}" if self.ranks == 1 else f"ranks {self.first} to {self.first + self.ranks - 1}"


@dataclass(frozen=True)
class Step:
    """A simulated step: its seconds, and its lanes, one for each stage of the pipeline."""

    seconds: float
    lanes: list[Lane]

    @property
    def exposed(self) -> float:
        """The share of the ranks' time in which they wait for messages of their own."""
        return sum(lane.exposed for lane in self.lanes) / (len(self.lanes) * self.seconds)

    @property
    def bubble(self) -> float:
        """The share in which they do nothing, or wait for another stage."""
        return 1 - self.exposed - sum(lane.busy for lane in self.lanes) / (len(self.lanes) * self.seconds)


def simulate_step(plan: ParallelPlan, rows: int, job: Job, hardware: Hardware, *, shared_link: bool = False) -> Step:
    """One step, when micro-batches have `rows` rows. ValueError as `predict` and `schedules.schedule` raise it."""
    count, costs = passes(plan, rows, job), Costs(plan, rows, job, hardware)
    program = Program(plan, count, costs.chunks(), costs.send, hardware, shared_link=shared_link)
    busy = hardware.busy_stages(plan)
    done = run(program.tasks(), COMPUTE if busy < plan.pipeline else (), busy)
    lanes = [[] for _ in range(plan.pipeline)]
    for each in done:
        lanes[int(each.task.stream.partition(" ")[0])].append(each)
    each_has = plan.size // plan.pipeline
    return Step(
        max(each.end for each in done),
        [Lane(number * each_has, each_has, own, *_times(own)) for number, own in enumerate(lanes)],
    )


def _times(done: Sequence[Done]) -> tuple[float, float]:
    """(seconds with arithmetic, seconds with messages alone)."""
    arithmetic = [(each.start, each.end) for each in done if each.task.kind in COMPUTE]
    anything = [(each.start, each.end) for each in done]
    return covered(arithmetic), covered(anything) - covered(arithmetic)


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length that they cover together.

    >>> covered([(0, 2), (1, 3), (5, 6)])
    4
    """
    total, until = 0, float("-inf")
    for start, end in sorted(spans):
        total += max(0, end - max(start, until))
        until = max(until, end)
    return total


class Program:
    """The tasks of a step, lane by lane. `_at` is the task that the next one of a lane's program needs."""

    def __init__(
        self, plan: ParallelPlan, count: int, chunks: Sequence[Chunk], send: float, hardware: Hardware, *,
        shared_link: bool = False,
    ) -> None:  # fmt: skip
        self.plan, self.count, self.hardware, self.send, self.shared_link = plan, count, hardware, send, shared_link
        self.chunks, self.stages, self.grouped = [_units(chunk) for chunk in chunks], len(chunks), chunks
        self._tasks: list[Task] = []
        self._at: list[tuple[int, ...]] = [()] * plan.pipeline
        self._last: dict[tuple[str, int, int], int] = {}
        self._sums: list[list[int]] = [[] for _ in range(plan.pipeline)]
        self._late: list[list[tuple[int, Unit]]] = [[] for _ in range(plan.pipeline)]

    def tasks(self) -> list[Task]:
        """All of them."""
        plan, ranks = self.plan, range(self.plan.pipeline)
        queues = [schedule(plan.schedule, len(ranks), self.count, rank, plan.chunks) for rank in ranks]
        for rank, action in in_order(queues, self.stages):
            self._action(rank, action)
        for rank in ranks:
            for number, unit in self._late[rank]:
                self._chain(rank, "data", f"gradients of unit {number}", unit.spread)
        ends = tuple(task for rank in ranks for task in (*self._at[rank], *self._sums[rank]))
        for rank in ranks:
            own = self.grouped[rank :: plan.pipeline]
            self._at[rank] = ends
            self._chain(rank, "update", "update", update_seconds(own, plan, self.hardware))
            hand = sum(n * unit.hand for chunk in own for unit, n in chunk)
            self._chain(rank, "data", "new parameters", hand)
        return self._tasks

    def _action(self, rank: int, action: Action) -> None:
        stage = action.chunk * self.plan.pipeline + rank
        arrived = [self._last[need] for need in needed(action, stage, self.stages) if need[1] != stage]
        self._at[rank] = (*self._at[rank], *arrived)
        units = list(enumerate(self.chunks[stage]))
        back, label = action.kind == "backward", f"micro-batch {action.microbatch}"
        gathered = self._beside(rank, "shard", f"gather, {label}", units[-1 if back else 0][1].gather)
        reduced: list[int] = []
        for place, (number, unit) in enumerate(units[::-1] if back else units):
            before = self._at[rank]
            self._at[rank] = (*before, *gathered)
            following = (units[::-1] if back else units)[place + 1 : place + 2]
            # The next one's parameters are asked for when this one begins.
            gathered = self._beside(rank, "shard", f"gather, {label}", following[0][1].gather if following else 0.0)
            self._unit(rank, unit, back, f"{unit.kind} {number}, {label}")
            if back:
                reduced = self._beside(rank, "shard", f"reduce, {label}", unit.reduce) or reduced
                if action.microbatch == self.count - 1:
                    self._spread(rank, number, unit)
        self._at[rank] = (*self._at[rank], *reduced)
        self._pass_on(rank, action, stage)

    def _unit(self, rank: int, unit: Unit, back: bool, label: str) -> None:
        if back and unit.again is not None:
            self._work(rank, "recompute", label, unit.forward, unit.attend, unit.again)
        turn = (unit.backward, 2 * unit.attend, unit.back) if back else (unit.forward, unit.attend, unit.out)
        self._work(rank, "backward" if back else "forward", label, *turn)

    def _work(self, rank: int, kind: str, label: str, seconds: float, attend: float, messages: Exchange) -> None:
        if messages.ring:
            ring = self._beside(rank, "context", f"keys and values, {label}", messages.ring)
            self._chain(rank, kind, f"attention of {label}", attend)
            self._at[rank] = (*self._at[rank], *ring)
            seconds -= attend
        self._chain(rank, kind, label, seconds)
        self._chain(rank, "tensor", f"sum, {label}", messages.tensor)
        self._chain(rank, "expert", f"rows, {label}", messages.expert)

    def _spread(self, rank: int, number: int, unit: Unit) -> None:
        if self.hardware.overlaps:
            self._sums[rank] += self._beside(rank, "data", f"gradients of unit {number}", unit.spread)
        else:
            self._late[rank].append((number, unit))

    def _pass_on(self, rank: int, action: Action, stage: int) -> None:
        """What the next stage, or the one before, needs: this action, and its message where that is another rank."""
        target = stage + (1 if action.kind == "forward" else -1)
        key = (action.kind, stage, action.microbatch)
        self._last[key] = self._at[rank][0]
        if 0 <= target < self.stages and self.plan.pipeline > 1:
            label = f"to stage {target}, micro-batch {action.microbatch}"
            if sent := self._beside(rank, "pipeline", label, self.send, f"pipeline {action.kind}"):
                self._last[key] = sent[-1]

    def _chain(self, rank: int, kind: str, label: str, seconds: float) -> None:
        """The next task of this lane's program; what follows waits for it."""
        if seconds > 0 or not self._at[rank]:
            self._at[rank] = (self._add(rank, kind, label, seconds),)

    def _beside(self, rank: int, kind: str, label: str, seconds: float, stream: str | None = None) -> list[int]:
        """A task that what follows does not wait for, unless the rank cannot do both."""
        if seconds <= 0:
            return []
        number = self._add(rank, kind, label, seconds, stream)
        if not self.hardware.overlaps:
            self._at[rank] = (number,)
        return [number]

    def _add(self, rank: int, kind: str, label: str, seconds: float, stream: str | None = None) -> int:
        own = (stream or kind) if not self.shared_link else "link"
        stream = "compute" if kind in COMPUTE or not self.hardware.overlaps else own
        if kind in COMPUTE:  # speeds are those of ranks that are all busy
            seconds *= self.hardware.busy_stages(self.plan) / self.plan.pipeline
        self._tasks.append(Task(f"{rank} {stream}", kind, label, seconds, self._at[rank]))
        return len(self._tasks) - 1


def _units(chunk: Chunk) -> list[Unit]:
    return [unit for unit, n in chunk for _ in range(n)]


def in_order(queues: Sequence[Sequence[Action]], stages: int) -> Iterator[tuple[int, Action]]:
    """(rank, action) of all ranks' schedules so that each comes after what it needs."""
    done: set[tuple[str, int, int]] = set()
    at = [0] * len(queues)
    while any(place < len(queue) for place, queue in zip(at, queues, strict=True)):
        for rank, queue in enumerate(queues):
            while at[rank] < len(queue):
                action = queue[at[rank]]
                stage = action.chunk * len(queues) + rank
                if not all(need in done for need in needed(action, stage, stages)):
                    break
                done.add((action.kind, stage, action.microbatch))
                at[rank] += 1
                yield rank, action
