"""Pipeline schedules as data: what each rank does in which order, and a simulator that draws the time it takes.

A model is a chain of stages, one per rank, and a batch is m micro-batches that flow down the chain and back. With
p = 4 ranks, m = 4, a backward pass (b) as long as a forward pass (f), and idle time as dots:

    gpipe    f0 f1 f2 f3 .. .. .. .. .. .. b0 b1 b2 b3        1f1b    f0 f1 f2 f3 .. .. .. b0 .. b1 .. b2 .. b3
             .. f0 f1 f2 f3 .. .. .. .. b0 b1 b2 b3 ..                .. f0 f1 f2 .. .. b0 f3 b1 .. b2 .. b3 ..
             .. .. f0 f1 f2 f3 .. .. b0 b1 b2 b3 .. ..                .. .. f0 f1 .. b0 f2 b1 f3 b2 .. b3 .. ..
             .. .. .. f0 f1 f2 f3 b0 b1 b2 b3 .. .. ..                .. .. .. f0 b0 f1 b1 f2 b2 f3 b3 .. .. ..

The bubble, the share of time that is idle, is (p - 1) / (m + p - 1) for both; but a rank of 1F1B keeps the activations
of p - rank micro-batches only, where GPipe keeps m. Interleaved 1F1B gives each rank v stages instead of one, each a
v-th of the work, so that filling and draining the pipeline takes a v-th of the time, for v times the messages.

Every schedule goes back in the order of micro-batches, so gradients add up as they do without a pipeline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from groundup.config import nearest

Name = Literal["gpipe", "1f1b", "interleaved"]
NAMES = ("gpipe", "1f1b", "interleaved")


class Action(NamedTuple):
    """One pass of one micro-batch through one chunk; chunk c of rank r is stage c * ranks + r of the chain."""

    kind: Literal["forward", "backward"]
    microbatch: int
    chunk: int = 0

    def __str__(self) -> str:
        return f"{self.kind} of micro-batch {self.microbatch} through chunk {self.chunk}"


def schedule(name: str, ranks: int, microbatches: int, rank: int, virtual: int = 1) -> list[Action]:
    """What `rank` of `ranks` does for one batch, in order; what to send and to wait for follows from that.

    gpipe: all forward passes, then all backward passes (Huang et al. 2018, arXiv:1811.06965).
    1f1b: forward passes until the pipeline is full, then one backward for each forward; PipeDream-flush (Narayanan et
    al. 2020, arXiv:2006.09503).
    interleaved: 1F1B over `virtual` chunks per rank (Narayanan et al. 2021, arXiv:2104.04473, section 2.2).

    Raises ValueError for an unknown name, for micro-batches that `interleaved` cannot deal out in groups of `ranks`,
    and for chunks that the schedule does not know.
    """
    if name not in NAMES:
        raise ValueError(f"pipeline schedule {name!r} is unknown{nearest(name, NAMES)}")
    if microbatches < 1 or ranks < 1 or not 0 <= rank < ranks:
        raise ValueError(f"pipeline: {microbatches} micro-batches, rank {rank} of {ranks}; expected at least 1 of each")
    if (name == "interleaved") != (virtual > 1):
        raise ValueError(f"pipeline: {name} with virtual={virtual}; interleaved takes 2 or more chunks, the others 1")
    if name == "interleaved" and microbatches % ranks:
        near = (microbatches // ranks or 1) * ranks
        raise ValueError(
            f"pipeline: interleaved needs a multiple of {ranks} micro-batches, one per rank; "
            f"got {microbatches}, use {near} or {near + ranks}"
        )
    forwards = [_nth("forward", k, ranks, virtual) for k in range(microbatches * virtual)]
    backwards = [_nth("backward", k, ranks, virtual) for k in range(microbatches * virtual)]
    ahead = len(forwards) if name == "gpipe" else min(_warmup(ranks, rank, virtual), len(forwards))
    steady = [action for pair in zip(forwards[ahead:], backwards, strict=False) for action in pair]
    return forwards[:ahead] + steady + backwards[len(forwards) - ahead :]


def _warmup(ranks: int, rank: int, virtual: int) -> int:
    """Forward passes before the first that is followed by a backward pass."""
    if virtual == 1:
        return ranks - rank - 1
    return (ranks - rank - 1) * 2 + (virtual - 1) * ranks


def _nth(kind: Literal["forward", "backward"], k: int, ranks: int, virtual: int) -> Action:
    """Groups of `ranks` micro-batches go through chunk 0, then through chunk 1, ...; backwards from the last."""
    if virtual == 1:
        return Action(kind, k)
    chunk = k // ranks % virtual
    microbatch = k // (ranks * virtual) * ranks + k % ranks
    return Action(kind, microbatch, chunk if kind == "forward" else virtual - 1 - chunk)


def bubble_fraction(ranks: int, microbatches: int, virtual: int = 1) -> float:
    """The share of time in which a rank is idle, when all stages take equally long and messages no time.

    >>> bubble_fraction(4, 8), bubble_fraction(4, 8, virtual=3)
    (0.2727272727272727, 0.1111111111111111)
    """
    return (ranks - 1) / (virtual * microbatches + ranks - 1)


def most_live(actions: Sequence[Action]) -> int:
    """The largest number of passes whose activations a rank keeps at a time: forward was, backward was not."""
    live = most = 0
    for action in actions:
        live += 1 if action.kind == "forward" else -1
        most = max(most, live)
    return most


class Span(NamedTuple):
    """An action and when it ran, in seconds."""

    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """Per rank, its actions with their times."""

    ranks: list[list[Span]]

    @property
    def seconds(self) -> float:
        spans = [span for rank in self.ranks for span in rank]
        return max(s.end for s in spans) - min(s.start for s in spans)

    @property
    def bubble(self) -> float:
        """The share of all ranks' time in which nothing ran."""
        busy = sum(span.end - span.start for rank in self.ranks for span in rank)
        return 1 - busy / (len(self.ranks) * self.seconds)

    def draw(self, seconds_per_column: float = 1.0) -> str:
        """A line per rank: f and b with the micro-batch in each column, dots where nothing runs."""
        columns = round(self.seconds / seconds_per_column)
        lines = []
        for rank in self.ranks:
            cells = [".."] * columns
            for action, start, end in rank:
                for column in range(round(start / seconds_per_column), round(end / seconds_per_column)):
                    cells[column] = f"{action.kind[0]}{action.microbatch}"
            lines.append(" ".join(cells))
        return "\n".join(lines)


def simulate(
    schedules: Sequence[Sequence[Action]],
    forward: float | Sequence[float] = 1.0,
    backward: float | Sequence[float] = 2.0,
    transfer: float = 0.0,
) -> Timeline:
    """Run all ranks' schedules on paper: an action starts when its rank is free and what it needs has arrived.

    forward, backward: seconds of one micro-batch in each stage of the chain (one number: in all). transfer: seconds
    from the end of an action until the neighbour has its result; senders do not wait.

    Raises ValueError when an action is missing or there twice, or when ranks wait for each other, naming who for what.
    """
    ranks = len(schedules)
    stages = _check_complete(schedules)
    seconds = {
        "forward": [forward] * stages if isinstance(forward, int | float) else list(forward),
        "backward": [backward] * stages if isinstance(backward, int | float) else list(backward),
    }
    done: dict[tuple[str, int, int], float] = {}
    spans: list[list[Span]] = [[] for _ in schedules]
    while any(len(ran) < len(actions) for ran, actions in zip(spans, schedules, strict=True)):
        moved = False
        for rank, actions in enumerate(schedules):
            while len(spans[rank]) < len(actions):
                action = actions[len(spans[rank])]
                stage = action.chunk * ranks + rank
                needs = needed(action, stage, stages)
                if any(need not in done for need in needs):
                    break
                ready = [done[need] + (transfer if need[1] != stage else 0.0) for need in needs]
                start = max([spans[rank][-1].end if spans[rank] else 0.0, *ready])
                end = start + seconds[action.kind][stage]
                done[action.kind, stage, action.microbatch] = end
                spans[rank].append(Span(action, start, end))
                moved = True
        if not moved:
            raise ValueError(_deadlock(schedules, spans))
    return Timeline(spans)


def needed(action: Action, stage: int, stages: int) -> list[tuple[str, int, int]]:
    """(kind, stage, micro-batch) of what has to have run before this action of this stage."""
    if action.kind == "forward":
        return [("forward", stage - 1, action.microbatch)] if stage else []
    own = ("forward", stage, action.microbatch)
    return [own, ("backward", stage + 1, action.microbatch)] if stage + 1 < stages else [own]


def _check_complete(schedules: Sequence[Sequence[Action]]) -> int:
    """The number of stages, when every micro-batch goes through every chunk of every rank once, and back once."""
    everything = {action for actions in schedules for action in actions}
    wanted = {
        Action(kind, microbatch, chunk)
        for kind in ("forward", "backward")
        for microbatch in {action.microbatch for action in everything}
        for chunk in {action.chunk for action in everything}
    }
    for rank, actions in enumerate(schedules):
        if missing := sorted(wanted - set(actions)):
            raise ValueError(f"pipeline: rank {rank} lacks the {missing[0]}")
        if len(actions) != len(wanted):
            twice = next(action for action in actions if list(actions).count(action) > 1)
            raise ValueError(f"pipeline: rank {rank} has the {twice} more than once")
    return len(schedules) * len({action.chunk for action in everything})


def _deadlock(schedules: Sequence[Sequence[Action]], spans: Sequence[Sequence[Span]]) -> str:
    waiting = [
        f"rank {rank} before the {actions[len(ran)]}"
        for rank, (actions, ran) in enumerate(zip(schedules, spans, strict=True))
        if len(ran) < len(actions)
    ]
    return f"pipeline: the ranks wait for each other: {', '.join(waiting)}"
