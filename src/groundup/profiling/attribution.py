"""Whose time was it? From the events of a trace to seconds per group and per operation.

Events of a thread nest, so at every instant one event is the innermost: the time goes to it. An event's group is that
of its own mark, else that of the event around it. A node of the backward pass has the group of the forward operation
that made it: autograd numbers its nodes, and the profiler writes the number that the next node will get on each forward
operation and the node's own on each backward event. Where several forward operations bear one number, the last of
them made the node. Gradients are added up (`AccumulateGrad`, which has no number) straight after the node that made
them, hence for its group. What is left between the backward pass and the optimizer's step clips the gradient, so it is
the optimizer's.

So all groups together are the whole step; what no rule reaches is shown as "other".
On a GPU the time is that of kernels on the device: each has the group of the operation that launched it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from groundup.profiling.groups import OPTIMIZER, OTHER
from groundup.profiling.scopes import PREFIX, STEP

BACKWARD = "autograd::engine::evaluate_function: "
KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")
# Stamps are rounded to a nanosecond, here in microseconds: an event may seem to outlive the one around it.
ROUNDING = 2e-3

TraceEvent = dict[str, Any]


@dataclass
class Spent:
    """Of one marked step, or several. `interpreter` is the host's time in no operation: Python, and the way into torch.

    `waiting` is the time in which a GPU ran no kernel.
    """

    steps: int = 0
    seconds: float = 0.0
    groups: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    operations: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    calls: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    interpreter: float = 0.0
    waiting: float = 0.0


@dataclass
class _Open:
    """An event that has begun; `inside` is the time of events directly within."""

    event: TraceEvent
    end: float
    group: str
    own_step: "_Step | None"
    inside: float = 0.0


@dataclass
class _Step:
    number: int
    start: float
    end: float
    backward_ran: bool = False


def spent(events: Iterable[TraceEvent]) -> list[Spent]:
    """Add up a Chrome trace's events (its "traceEvents"; stamps in microseconds), step by step."""
    events = list(events)
    steps: dict[int, Spent] = defaultdict(Spent)
    launches: dict[int, tuple[Spent, str]] = {}
    for closed in _closed(events):
        if closed.own_step is None:
            continue
        step = steps[closed.own_step.number]
        if (launch := closed.event.get("args", {}).get("External id")) is not None:
            launches[launch] = step, closed.group
        _add(step, closed)
    if kernels := [event for event in events if event.get("cat") in KERNELS]:
        _replace_by_kernels(list(steps.values()), kernels, launches)
    return [steps[number] for number in sorted(steps)]


def quiet(steps: Iterable[Spent]) -> Spent:
    """The faster half of the steps together: whatever else runs on a machine only ever adds time."""
    ordered = sorted(steps, key=lambda step: step.seconds)
    total = Spent()
    for step in ordered[: (len(ordered) + 1) // 2]:
        total.steps += step.steps
        total.seconds += step.seconds
        total.interpreter += step.interpreter
        total.waiting += step.waiting
        for name in ("groups", "operations", "calls"):
            table = getattr(total, name)
            for key, value in getattr(step, name).items():
                table[key] += value
    return total


def groups_at(events: Iterable[TraceEvent]) -> Iterator[tuple[TraceEvent, str]]:
    """Every event inside of a step, in the order of time, instants too, with its group."""
    rows = [(o.event, o.group) for o in _closed(list(events)) if o.own_step is not None]
    yield from sorted(rows, key=lambda row: row[0]["ts"])


def _closed(events: list[TraceEvent]) -> Iterator[_Open]:
    """Every timed event once it is over, with its group and the time within; threads by themselves."""
    labels = _Labels()
    stacks: dict[Any, list[_Open]] = defaultdict(list)
    relevant = [e for e in events if e.get("ph") in ("X", "i") and e.get("cat") in _HOST]
    for event in sorted(relevant, key=lambda e: (e["ts"], -e.get("dur", 0.0))):
        stack = stacks[event["tid"]]
        yield from _pop(stack, event["ts"] + ROUNDING if event["ph"] == "X" else event["ts"])
        around = stack[-1] if stack else None
        end = event["ts"] + event.get("dur", 0.0)
        opened = _Open(event, end, *labels.of(event, around, end))
        if event["ph"] == "X":
            stack.append(opened)
        else:
            yield opened
    for stack in stacks.values():
        yield from _pop(stack, float("inf"))


_HOST = ("cpu_op", "user_annotation", "cpu_instant_event", "cuda_runtime", "cuda_driver")


def _pop(stack: list[_Open], now: float) -> Iterator[_Open]:
    while stack and stack[-1].end <= now:
        done = stack.pop()
        if stack:
            stack[-1].inside += done.event["dur"]
        yield done


class _Labels:
    """Groups of events, given in the order of their beginning."""

    def __init__(self) -> None:
        self.by_number: dict[int, str] = {}
        self.last_node = OTHER
        self.step: _Step | None = None

    def of(self, event: TraceEvent, around: _Open | None, end: float) -> tuple[str, _Step | None]:
        name, arguments = event["name"], event.get("args", {})
        if name == STEP:
            self.step = _Step(0 if self.step is None else self.step.number + 1, event["ts"], end)
            return OTHER, self.step
        inherited = around.group if around else OTHER
        step = around.own_step if around else self._step_at(event["ts"])
        number = arguments.get("Sequence number")
        if name.startswith(PREFIX):
            group = name.removeprefix(PREFIX)
        elif name.startswith(BACKWARD):
            group = self._node(number, step)
        elif step is not None and around is not None and around.event["name"] == STEP and step.backward_ran:
            group = OPTIMIZER
        else:
            group = inherited
        if number is not None and not arguments.get("Fwd thread id"):
            self.by_number[number] = group
        return group, step

    def _step_at(self, now: float) -> _Step | None:
        """The step that an event of another thread, such as autograd's, falls into."""
        return self.step if self.step is not None and self.step.start <= now <= self.step.end else None

    def _node(self, number: int | None, step: _Step | None) -> str:
        if step is not None:
            step.backward_ran = True
        if number is not None:
            self.last_node = self.by_number.get(number, OTHER)
        return self.last_node


def is_operation(event: TraceEvent) -> bool:
    """Whether an event is an operation of torch, not a mark or autograd's frame around others."""
    return event.get("cat") == "cpu_op" and "::" in event["name"] and not event["name"].startswith("autograd::")


def _add(total: Spent, closed: _Open) -> None:
    event = closed.event
    if event["ph"] != "X" or event["cat"] not in ("cpu_op", "user_annotation"):
        return
    seconds = (event["dur"] - closed.inside) / 1e6
    if event["name"] == STEP:
        total.steps += 1
        total.seconds += event["dur"] / 1e6
    total.groups[closed.group] += seconds
    if is_operation(event):
        key = event["name"], closed.group
        total.operations[key] += seconds
        total.calls[key] += 1
    else:
        total.interpreter += seconds


def _replace_by_kernels(steps: list[Spent], kernels: list[TraceEvent], launches: dict[int, tuple[Spent, str]]) -> None:
    """Seconds of kernels on the device in place of the host's; what is left of a step waited for the host."""
    for step in steps:
        for table in (step.groups, step.operations, step.calls):
            table.clear()
    for kernel in kernels:
        found = launches.get(kernel.get("args", {}).get("External id", -1))
        if found is None:
            continue  # launched outside of the marked steps
        step, group = found
        key = kernel["name"], group
        step.groups[group] += kernel["dur"] / 1e6
        step.operations[key] += kernel["dur"] / 1e6
        step.calls[key] += 1
    for step in steps:
        step.waiting = max(0.0, step.seconds - sum(step.groups.values()))
        step.groups[OTHER] += step.waiting
