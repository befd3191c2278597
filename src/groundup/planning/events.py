"""A discrete-event simulator: tasks that need each other, on streams that do one thing at a time.

    stream "0 compute"   [ forward 1 ][ forward 2 ]  ......  [ backward 2 ]
    stream "0 shard"     [ gather 2 ]   [ gather 3 ]
                                    ^ starts as soon as its stream is free and all that it needs has ended

A stream takes tasks in the order in which they become ready (and of those that are ready together, in the order in
which they were given); so a compute stream whose tasks need each other in a row runs its program, and a link that
several ranks share serves first who came first.
"""

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Task(NamedTuple):
    """Something that takes `seconds` of a stream. needs: numbers of the tasks that must have ended. kind and label are
    for people."""

    stream: str
    kind: str
    label: str
    seconds: float
    needs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Done:
    """A task and when it ran, in seconds."""

    task: Task
    start: float
    end: float


def run(tasks: Sequence[Task]) -> list[Done]:
    """When each task runs. ValueError for one that needs what is not there, and for tasks that wait for each other."""
    missing, followers = _graph(tasks)
    ready: dict[str, list[tuple[float, int]]] = defaultdict(list)
    free: dict[str, float] = defaultdict(float)
    starts = [-1.0] * len(tasks)
    events = [(0.0, i, False) for i, count in enumerate(missing) if count == 0]  # (when, task, whether it has ended)
    while events:
        now, touched = events[0][0], {}
        while events and events[0][0] == now:
            _, number, ended = heapq.heappop(events)
            touched[tasks[number].stream] = None
            if not ended:
                heapq.heappush(ready[tasks[number].stream], (now, number))
            for follower in followers[number] if ended else ():
                missing[follower] -= 1
                if missing[follower] == 0:
                    heapq.heappush(events, (now, follower, False))
        for stream in touched:
            if ready[stream] and free[stream] <= now:
                _, chosen = heapq.heappop(ready[stream])
                starts[chosen], free[stream] = now, now + tasks[chosen].seconds
                heapq.heappush(events, (free[stream], chosen, True))
    if (first := next((i for i, start in enumerate(starts) if start < 0), None)) is not None:
        raise ValueError(
            f"simulation: tasks wait for each other, such as {tasks[first].label} on {tasks[first].stream}"
        )
    return [Done(task, start, start + task.seconds) for task, start in zip(tasks, starts, strict=True)]


def _graph(tasks: Sequence[Task]) -> tuple[list[int], list[list[int]]]:
    """(how many each task needs, which tasks need it)."""
    followers: list[list[int]] = [[] for _ in tasks]
    for number, task in enumerate(tasks):
        for need in task.needs:
            if not 0 <= need < len(tasks):
                raise ValueError(f"simulation: {task.label} on {task.stream} needs task {need} of {len(tasks)}")
            followers[need].append(number)
    return [len(task.needs) for task in tasks], followers
