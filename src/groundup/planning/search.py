"""All plans for a number of ranks, ranked: those that fit by their predicted seconds, then those that do not.

What is tried: every way to write the number as a product along the six axes, as far as the model can be divided so; for
each, micro-batches of 1, 2, 4, ... rows, with and without recomputing, whole copies or ZeRO-1 or 2 along `data`, and
one, two or four chunks for each stage. Beside `tensor` always sequence parallelism: as many bytes, less memory.
Of plans that differ in these alone, the ranking keeps the best one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from groundup.parallel.plan import AXES, ParallelPlan
from groundup.planning.hardware import Hardware
from groundup.planning.job import Job
from groundup.planning.memory import RankMemory, rank_memory
from groundup.planning.predict import Prediction, passes, predict
from groundup.planning.units import check

CHUNKS = (1, 2, 4)
MOST_TENSOR, MOST_CONTEXT = 16, 64


@dataclass(frozen=True)
class Candidate:
    """A plan whose micro-batches have `rows` rows, `passes` of them for each rank; its seconds, and a rank's bytes."""

    plan: ParallelPlan
    rows: int
    passes: int
    prediction: Prediction
    memory: RankMemory
    fits: bool

    @property
    def seconds(self) -> float:
        return self.prediction.seconds

    @property
    def axes(self) -> tuple[int, ...]:
        """Ranks along each axis."""
        return tuple(getattr(self.plan, axis) for axis in AXES)


def ranked(job: Job, hardware: Hardware, count: int) -> list[Candidate]:
    """The best candidate for each way to divide `count` ranks, best first; those that do not fit come last, by memory.

    ValueError where the rows of a step cannot be divided over so many ranks in any way.
    """
    best: dict[tuple[int, ...], Candidate] = {}
    for axes in divisions(job, count):
        fitting: list[tuple[ParallelPlan, int, RankMemory]] = []
        larger: list[tuple[ParallelPlan, int, RankMemory]] = []
        for plan, rows in _variants(axes, job):
            memory = rank_memory(plan, rows, job)
            (fitting if memory.peak <= hardware.memory_bytes else larger).append((plan, rows, memory))
        least = min(larger, key=lambda each: each[2].peak, default=None)
        found = [_candidate(*each, job, hardware) for each in fitting or ([least] if least else [])]
        if found:
            best[axes] = min(found, key=order)
    if not best:
        raise ValueError(
            f"plan: {job.rows} rows in a step, {job.model.num_layers} layers of this kind: there is no way to divide "
            f"them over {count} ranks; give other rows (--rows), such as {count}"
        )
    return sorted(best.values(), key=order)


def order(candidate: Candidate) -> tuple[bool, float, int, str]:
    """What fits first, by seconds (by bytes where it does not); of equals the simpler plan."""
    measure = candidate.seconds if candidate.fits else float(candidate.memory.peak)
    return not candidate.fits, round(measure, 9), len(candidate.plan.text), candidate.plan.text


def divisions(job: Job, count: int) -> Iterator[tuple[int, ...]]:
    """Ranks along each of `AXES`, as far as model and rows can be divided so."""
    layers, experts = job.model.num_layers, job.experts
    for pipeline in _divisors(count, layers):
        for tensor in (t for t in _divisors(count // pipeline, MOST_TENSOR) if job.can_cut(t)):
            for context in _divisors(count // pipeline // tensor, MOST_CONTEXT if job.attends else 1):
                if context > 1 and job.seq % (2 * context):
                    continue
                rest = count // pipeline // tensor // context
                for expert in (e for e in _divisors(rest, experts) if experts % e == 0):
                    if job.rows % rest:
                        continue
                    for shard in _divisors(rest // expert, rest):
                        yield pipeline, rest // expert // shard, shard, expert, context, tensor


def _divisors(number: int, most: int) -> list[int]:
    return [n for n in range(1, min(number, most) + 1) if number % n == 0]


def _variants(axes: Sequence[int], job: Job) -> Iterator[tuple[ParallelPlan, int]]:
    """(plan, rows of a micro-batch) of everything else that may be chosen for these axes."""
    named = dict(zip(AXES, axes, strict=True))
    parts, pipeline = named["data"] * named["shard"] * named["expert"], named["pipeline"]
    own = job.rows // parts
    sequence = named["tensor"] > 1 and job.seq % (named["tensor"] * named["context"]) == 0
    for rows in (rows for rows in _divisors(own, own) if rows.bit_count() == 1):
        for chunks in CHUNKS if pipeline > 1 else (1,):
            if pipeline * chunks > job.model.num_layers or (chunks > 1 and own // rows % pipeline):
                continue
            schedule = "interleaved" if chunks > 1 else "1f1b"
            microbatches = own // rows if pipeline > 1 else 1
            # Stage 2 lets go of each pass's gradients, so it is for steps of one pass.
            stage: Literal[1, 2] = 2 if own == rows else 1
            zeros: tuple[Literal[0, 1, 2], ...] = (0, stage) if _copied(named) else (0,)
            for zero in zeros:
                for recompute in (False, True):
                    yield ParallelPlan(
                        **named, zero=zero, sequence=sequence, schedule=schedule, microbatches=microbatches,
                        chunks=chunks, recompute=recompute,
                    ), rows  # fmt: skip


def _copied(axes: Mapping[Any, int]) -> bool:
    """Whether the ranks along `data` hold the same in full, which ZeRO-1 and 2 divide."""
    return axes["data"] > 1 and axes["shard"] == axes["expert"] == 1


def _candidate(plan: ParallelPlan, rows: int, memory: RankMemory, job: Job, hardware: Hardware) -> Candidate:
    prediction = predict(plan, rows, job, hardware)
    return Candidate(plan, rows, passes(plan, rows, job), prediction, memory, memory.peak <= hardware.memory_bytes)


def given(plan: ParallelPlan, job: Job, hardware: Hardware) -> Candidate:
    """This plan, with the micro-batches of which it is fastest; where it is a pipeline, it says how many there are.

    ValueError where the rows of a step do not divide, or the model does not.
    """
    check(plan, job)
    parts = plan.data * plan.shard * plan.expert
    own = job.rows // parts
    sizes = [own // plan.microbatches] if plan.pipeline > 1 else _divisors(own, own)
    found = [_candidate(plan, rows, rank_memory(plan, rows, job), job, hardware) for rows in sizes if rows]
    if not found:
        raise ValueError(f"plan: {job.rows} rows cannot be divided into {parts * plan.microbatches} micro-batches")
    return min(found, key=order)


def why(candidate: Candidate, best: Candidate, hardware: Hardware) -> str:
    """What keeps it from being the best: its memory, or what takes most seconds more than there."""
    if not candidate.fits:
        return f"needs {candidate.memory.peak / 1e9:,.0f} GB of {hardware.memory_bytes / 1e9:,.0f}"
    if candidate is best:
        return ""
    here, there = causes(candidate.prediction), causes(best.prediction)
    more = {name: here.get(name, 0.0) - there.get(name, 0.0) for name in here}
    name, seconds = max(more.items(), key=lambda item: item[1])
    return f"{name} +{1e3 * seconds:,.3g} ms"


def causes(prediction: Prediction) -> dict[str, float]:
    """Seconds by what they are spent on."""
    return {
        "arithmetic of the longest rank": prediction.compute,
        "recomputing": prediction.recompute,
        **{f"messages of {axis}": seconds for axis, seconds in prediction.exposed.items()},
        "bubble": prediction.bubble,
        "update": prediction.update,
    }
