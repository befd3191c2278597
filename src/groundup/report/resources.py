"""What a run used of its machine while it trained, from resources.jsonl."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from groundup.report.quantities import binary, number

Values = Sequence[float]


def grown(values: Values) -> float:
    """How much was added to a counter that begins at 0 again whenever a run is resumed.

    >>> grown([10.0, 30.0, 5.0, 6.0])
    36.0
    """
    return sum(now - before if now >= before else now for before, now in zip([0.0, *values], values, strict=False))


def written_bytes(records: Sequence[dict[str, Any]]) -> float | None:
    """What all sessions wrote, each counter up to its highest; None where no record says.

    Records of older runs do not name their session: there only a counter that fell tells of a resume, and what a
    session wrote whose first look was not below the last one's before is missing.

    >>> looks = [{"session": 1.0, "written_bytes": 10}, {"session": 1.0, "written_bytes": 30}]
    >>> written_bytes([*looks, {"session": 2.0, "written_bytes": 40}])
    70.0
    """
    sessions: dict[Any, list[float]] = {}
    for record in records:
        if (value := number(record.get("written_bytes"))) is not None:
            sessions.setdefault(number(record.get("session")), []).append(value)
    if not sessions:
        return None
    return float(sum(grown(values) if session is None else max(values) for session, values in sessions.items()))


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


# The name in a record -> (label, what becomes of the looks, how it is said).
SHOWN: dict[str, tuple[str, Callable[[Values], float], Callable[[float], str]]] = {
    "process_cores": ("this process, median", statistics.median, lambda x: f"{x:.2f} cores"),
    "machine_cpu_share": ("all cores in use, median", statistics.median, _share),
    "resident_bytes": ("memory held, at most", max, binary),
    "free_memory_bytes": ("memory free, at least", min, binary),
    "written_bytes": ("written to disk", max, binary),
    "data_wait_share": ("waited for data, mean", statistics.fmean, _share),
    "gpu_share": ("GPU in use, median", statistics.median, _share),
    "gpu_memory_bytes": ("GPU memory, at most", max, binary),
    "gpu_watts": ("GPU power, mean", statistics.fmean, lambda x: f"{x:.0f} W"),
    "gpu_celsius": ("GPU temperature, at most", max, lambda x: f"{x:.0f} °C"),
}


def resource_lines(records: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """(label, text) of what was looked at, without what the system did not say."""
    lines = []
    for name, (label, over, said) in SHOWN.items():
        values = [value for record in records if (value := number(record.get(name))) is not None]
        if name == "written_bytes" and values:
            values = [written_bytes(records) or 0.0]
        if values:
            lines.append((label, said(over(values))))
    return [*lines, ("looks", f"{len(records):,}")] if lines else []
