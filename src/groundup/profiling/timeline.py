"""Memory over one step: what was allocated and freed, when, and for whom."""

from collections.abc import Iterable
from dataclasses import dataclass

from groundup.profiling.attribution import TraceEvent, groups_at
from groundup.profiling.scopes import STEP

CPU, CUDA = 0, 1
"""Numbers of devices in the profiler's memory events."""


@dataclass(frozen=True)
class Timeline:
    """Bytes beyond those that were there when the step began (`resident_bytes`: weights and optimizer states).

    points: (seconds since the step began, bytes, group that allocated or freed)
    """

    resident_bytes: int
    points: list[tuple[float, int, str]]

    @property
    def peak(self) -> tuple[float, int, str]:
        """The point with most bytes."""
        return max(self.points, key=lambda point: point[1], default=(0.0, 0, "other"))

    @property
    def peak_bytes(self) -> int:
        """All bytes at the peak."""
        return self.resident_bytes + self.peak[1]


def memory_event_device(device_type: str) -> int:
    """The profiler's number for a kind of device."""
    return CUDA if device_type == "cuda" else CPU


def timeline(events: Iterable[TraceEvent], device_type: str, resident_bytes: int) -> Timeline:
    """From the memory events of one marked step in a trace."""
    wanted = memory_event_device(device_type)
    points: list[tuple[float, int, str]] = []
    began, allocated = 0.0, 0
    for event, group in groups_at(events):
        if event["name"] == STEP:
            began = event["ts"]
        elif event["name"] == "[memory]" and event["args"]["Device Type"] == wanted:
            allocated += event["args"]["Bytes"]
            points.append(((event["ts"] - began) / 1e6, allocated, group))
    return Timeline(resident_bytes, points)
