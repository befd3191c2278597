"""The seconds of a step under a plan, in closed form: what is worked, what is waited for, and what overlaps.

    passes x (forward + backward)                                   of the stage that takes longest
    + bubble       filling and draining the pipeline: the other stages' one micro-batch, divided by the chunks
    + spread       sums of gradients that the last backward pass does not hide
    + update       AdamW's way through memory

    with overlap, a pass takes       sum over layers of max(its work, the messages beside it) + the first gather
    without                          sum over layers of     its work + the messages beside it

`simulate.py` plays the same step out event by event; the two agree where stages are alike, and the simulator is right
where they are not. Narayanan et al. 2021, section 2.2 (arXiv:2104.04473): the bubble.
"""

from collections import defaultdict
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

from groundup.accounting.placement import UPDATE_BYTES
from groundup.parallel.plan import ParallelPlan
from groundup.planning.hardware import Hardware
from groundup.planning.job import Job
from groundup.planning.units import Chunk, Costs, Exchange, Unit


@dataclass(frozen=True)
class Prediction:
    """Seconds of a step. `exposed` are messages that nothing hides, by axis; all parts together are `seconds`."""

    compute: float
    recompute: float
    exposed: Mapping[str, float]
    bubble: float
    update: float

    @property
    def seconds(self) -> float:
        return self.compute + self.recompute + sum(self.exposed.values()) + self.bubble + self.update


@dataclass(frozen=True)
class Pass:
    """Seconds of one micro-batch on a rank, there and back, with all that is waited for; and what they are spent on."""

    forward: float
    backward: float
    compute: float
    recompute: float
    exposed: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return self.forward + self.backward


def predict(plan: ParallelPlan, rows: int, job: Job, hardware: Hardware) -> Prediction:
    """Of a step of `job`, when micro-batches have `rows` rows. ValueError where the rows do not divide."""
    costs, count = Costs(plan, rows, job, hardware), passes(plan, rows, job)
    chunks = costs.chunks()
    ranks = [chunks[rank :: plan.pipeline] for rank in range(plan.pipeline)]
    alike: dict[tuple[tuple[str, int], ...], Pass] = {}
    for chunk in chunks:
        if _kinds(chunk) not in alike:
            alike[_kinds(chunk)] = pass_through(chunk, hardware)
    works = [_together([alike[_kinds(chunk)] for chunk in own]) for own in ranks]
    slowest = max(works, key=lambda work: work.seconds)
    fill = (sum(work.seconds for work in works) - slowest.seconds) / plan.chunks
    wait = waits(plan, count, costs.send, hardware)
    working = count * slowest.seconds + fill + wait
    end = working
    for rank, own in enumerate(ranks):
        done = working - sum(work.backward for work in works[:rank]) / plan.chunks
        end = max(end, done + _spread(own, works[rank], hardware))
    exposed = defaultdict(float, {axis: count * seconds for axis, seconds in slowest.exposed.items()})
    exposed["pipeline"] += wait
    exposed["data"] += end - working + max(sum(n * unit.hand for chunk in own for unit, n in chunk) for own in ranks)
    return Prediction(
        compute=count * slowest.compute,
        recompute=count * slowest.recompute,
        exposed={axis: seconds for axis, seconds in exposed.items() if seconds > 0},
        bubble=fill,
        update=max(update_seconds(own, plan, hardware) for own in ranks),
    )


def _kinds(chunk: Chunk) -> tuple[tuple[str, int], ...]:
    """Units of a kind are alike, and so are stages of as many of each."""
    return tuple((unit.kind, n) for unit, n in chunk)


def passes(plan: ParallelPlan, rows: int, job: Job) -> int:
    """Micro-batches of a rank in a step: of the pipeline, or accumulated.

    ValueError where the rows of a step are not divided evenly, or the pipeline has another number.
    """
    parts = plan.data * plan.shard * plan.expert
    count, rest = divmod(job.rows, parts * rows)
    if rest or count < 1:
        raise ValueError(f"plan: {job.rows} rows cannot be divided into {parts} parts of micro-batches of {rows}")
    if plan.pipeline > 1 and count != plan.microbatches:
        raise ValueError(f"plan: microbatches={plan.microbatches}, but {job.rows} rows in {parts} parts are {count} "
                         f"micro-batches of {rows}")  # fmt: skip
    return count


def waits(plan: ParallelPlan, count: int, send: float, hardware: Hardware) -> float:
    """For messages of a pipeline: one on each way while it fills and drains.

    1F1B waits in between, too: as many micro-batches as there are stages are on their way, and each has gone to and
    fro when its turn comes again. Who cannot compute while it sends, sends each of them itself.
    """
    p = plan.pipeline
    if p == 1:
        return 0.0
    once = 2 * (p - 1) * send
    if not hardware.overlaps:
        return once + 2 * (count * plan.chunks - 1) * send
    return once * (1 + (count - 1) / p) if plan.schedule == "1f1b" else once


def pass_through(chunk: Chunk, hardware: Hardware) -> Pass:
    """One micro-batch through a stage and back."""
    exposed: dict[str, float] = defaultdict(float)
    ways = []
    for back in (False, True):
        work = beside = total = 0.0
        for unit, n in chunk:
            own = _work(unit, back, hardware, exposed, n)
            hidden = unit.gather + (unit.reduce if back else 0.0)
            work, beside = work + n * own, beside + n * hidden
            total += n * (max(own, hidden) if hardware.overlaps else own + hidden)
        if hardware.overlaps and beside:  # nothing is there yet to hide the first, or any more to hide the last
            total += _edge(chunk, back)
        exposed["shard"] += total - work
        ways.append(total)
    layers = [(unit, n) for unit, n in chunk if unit.again is not None]
    return Pass(
        *ways,
        compute=sum(n * (unit.forward + unit.backward) for unit, n in chunk),
        recompute=sum(n * unit.forward for unit, n in layers),
        exposed=exposed,
    )


def _work(unit: Unit, back: bool, hardware: Hardware, exposed: MutableMapping[str, float], n: int) -> float:
    """Of one unit on its way there or back: arithmetic, and what it waits for in between, which `exposed` is told."""
    turns: list[tuple[float, float, Exchange]] = [(unit.forward, unit.attend, unit.out)]
    if back:
        turns = [(unit.backward, 2 * unit.attend, unit.back)]
        if unit.again is not None:
            turns.append((unit.forward, unit.attend, unit.again))
    total = 0.0
    for arithmetic, attend, messages in turns:
        ring = max(0.0, messages.ring - attend) if hardware.overlaps else messages.ring
        exposed["tensor"] += n * messages.tensor
        exposed["expert"] += n * messages.expert
        exposed["context"] += n * ring
        total += arithmetic + messages.sums + ring
    return total


def _edge(chunk: Chunk, back: bool) -> float:
    first, last = chunk[0][0], chunk[-1][0]
    return last.gather + first.reduce if back else first.gather


def _together(found: list[Pass]) -> Pass:
    """All chunks of a rank."""
    exposed: dict[str, float] = defaultdict(float)
    for each in found:
        for axis, seconds in each.exposed.items():
            exposed[axis] += seconds
    forward, backward, compute, recompute = (
        sum(getattr(each, name) for each in found) for name in ("forward", "backward", "compute", "recompute")
    )
    return Pass(forward, backward, compute, recompute, exposed)


def _spread(chunks: Sequence[Chunk], work: Pass, hardware: Hardware) -> float:
    """Seconds after the last backward pass until all gradients are summed: it hides what is sent while it goes on."""
    units = [(unit, n) for chunk in chunks for unit, n in chunk]
    total = sum(n * unit.spread for unit, n in units)
    if not total or not hardware.overlaps:
        return total
    last = units[0][0]
    begun = units[-1][0].backward  # nothing is ready before the first unit has gone back
    return max(last.spread, total - (work.backward - begun))


def update_seconds(chunks: Sequence[Chunk], plan: ParallelPlan, hardware: Hardware) -> float:
    """AdamW's, for what a rank of these stages keeps."""
    parameters = sum(n * unit.parameters for chunk in chunks for unit, n in chunk)
    owners = plan.shard * (plan.data if plan.zero else 1)
    return UPDATE_BYTES * parameters / owners / hardware.memory_bandwidth
