"""The memory of a training step by its phases: what a rehearsal predicts beside what the profiler recorded.

Steady is what is there before and after a step: weights and the optimizer's states. Each phase has a peak on top of
that: forward the activations, backward the gradients that come as activations go (clipping belongs to it), and the
update what the optimizer computes with.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from groundup.accounting.simulate import BACKWARD, CLIPPING, FORWARD, UPDATE
from groundup.model import Transformer
from groundup.profiling.attribution import TraceEvent
from groundup.profiling.groups import HEAD, OPTIMIZER
from groundup.profiling.recorder import Recorder
from groundup.profiling.result import Profile
from groundup.profiling.scopes import PREFIX, STEP
from groundup.profiling.timeline import memory_event_device
from groundup.train import precision
from groundup.train.rehearsal import rehearse_config

STEADY = "steady"
Span = tuple[float, float]


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes that tensors hold at most: `phase` is steady, forward, backward or update."""

    phase: str
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """measured / predicted - 1, as in the ledger."""
        return self.measured / self.predicted - 1


@dataclass(frozen=True)
class MemorySpans:
    """A recorded step: `points` are (seconds since it began, bytes), `spans` the seconds of forward and update."""

    points: tuple[tuple[float, int], ...]
    spans: dict[str, Span]

    def phase_at(self, seconds: float) -> str:
        """Where it is in no span it is the backward pass."""
        return next((name for name, (begin, end) in self.spans.items() if begin <= seconds <= end), BACKWARD)

    def peaks(self, steady: int) -> dict[str, int]:
        """The most bytes of each phase, those that it begins with included."""
        most, now = {FORWARD: steady, BACKWARD: steady, UPDATE: steady}, steady
        for seconds, size in self.points:
            phase = self.phase_at(seconds)
            most[phase] = max(most[phase], now, size)
            now = size
        return most


def memory_spans(events: Iterable[TraceEvent], device_type: str, steady: int) -> MemorySpans:
    """From the trace of one marked step with its memory events."""
    events = list(events)
    began = next(event["ts"] for event in events if event["name"] == STEP)
    spans = {phase: _span(events, group, began) for phase, group in ((FORWARD, HEAD), (UPDATE, OPTIMIZER))}
    device, now, points = memory_event_device(device_type), steady, []
    recorded = (e for e in events if e["name"] == "[memory]" and e["args"]["Device Type"] == device)
    for event in sorted(recorded, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        points.append(((event["ts"] - began) / 1e6, now))
    return MemorySpans(tuple(points), spans)


def _span(events: Sequence[TraceEvent], group: str, began: float) -> Span:
    """From the first mark of the group to the end of its last. The objective, which the forward pass is in, has the
    head's mark."""
    marked = [event for event in events if event["name"] == PREFIX + group and "dur" in event]
    ends = max(event["ts"] + event["dur"] for event in marked)
    return (min(event["ts"] for event in marked) - began) / 1e6, (ends - began) / 1e6


def phase_memory(model: Transformer, profile: Profile, recorder: Recorder) -> tuple[list[PhaseMemory], MemorySpans]:
    """Of a profiled training step: steady, forward, backward, update; and the step itself. ValueError for inference."""
    settings = profile.settings
    if settings.phase != "train":
        raise ValueError(f"phases of memory are those of training, not of {settings.phase}")
    step = memory_spans(recorder.events("memory"), model.device.type, recorder.steady_bytes)
    chosen = precision.DTYPES[recorder.precision]
    rehearsal = rehearse_config(
        model.config, settings.batch_size, profile.context_length, chosen,
        optimizer=settings.optimizer, device=model.device,
    )  # fmt: skip
    predicted, measured = dict(rehearsal.phase_peaks), step.peaks(recorder.steady_bytes)
    predicted[BACKWARD] = max(predicted[BACKWARD], predicted.pop(CLIPPING, 0))
    rows = [PhaseMemory(STEADY, rehearsal.steady_bytes, recorder.steady_bytes)]
    return [*rows, *(PhaseMemory(name, predicted[name], measured[name]) for name in measured)], step
