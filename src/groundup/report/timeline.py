"""A simulated step of many ranks as one page: lanes over time, in colours for what is done, and the idle time between.

ranks 0 to 7     arithmetic  [forward ][forward ]......[backward      ]
                 messages       [gather]  [gather]         [reduce]
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from groundup.files import write_atomic
from groundup.planning.events import Done
from groundup.planning.hardware import Hardware
from groundup.planning.search import Candidate, causes
from groundup.planning.simulate import COMPUTE, Lane, Step
from groundup.report.tables import Column, Table, to_html
from groundup.report.templates import fill

WIDTH, ROW, GAP, LABELS = 1600, 28, 14, 150
MOST_LANES, LEAST_PIXELS = 8, 3.0

KINDS = {
    "forward": "Forward", "recompute": "Forward, recomputed", "backward": "Backward", "update": "Update",
    "tensor": "Sums of activations (tensor)", "expert": "Rows to experts", "context": "Keys and values (context)",
    "shard": "Parameters and gradients (shard)", "data": "Gradients (data)", "pipeline": "To the next stage (pipeline)",
}  # fmt: skip
"""Every kind of task, and its name in the legend."""


@dataclass(frozen=True)
class Bar:
    """A task, or several short ones of a kind in a row, in pixels; `words` say what it is and when."""

    kind: str
    x: float
    y: float
    width: float
    words: str


@dataclass(frozen=True)
class Row:
    """A lane as it is drawn: its place from the top in pixels, and its bars in the order of time."""

    name: str
    y: float
    bars: list[Bar]


def write_timeline(path: str | Path, chosen: Candidate, step: Step, hardware: Hardware) -> Path:
    """Write the page, which needs nothing else; the same step gives the same bytes. OSError as the system gives it."""
    lanes = representatives(step.lanes)
    rows = [Row(lane.name, i * (2 * ROW + GAP), bars(lane, i, step.seconds)) for i, lane in enumerate(lanes)]
    used = {bar.kind for row in rows for bar in row.bars}
    script = (Path(__file__).parent / "timeline.js").read_text("utf-8")
    page = fill(
        "timeline.html.j2",
        title=chosen.plan.text or "one rank",
        lede=_lede(chosen, step, hardware),
        rows=rows,
        legend=[(kind, words) for kind, words in KINDS.items() if kind in used],
        ticks=ticks(step.seconds),
        width=WIDTH,
        height=len(rows) * (2 * ROW + GAP),
        row=ROW,
        labels=LABELS,
        omitted=len(step.lanes) - len(lanes),
        tables=[to_html(_lanes_table(step)), to_html(_parts_table(chosen))],
        notes=hardware.said,
        script=Markup(script),
        hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_atomic(path, page)
    return Path(path)


def representatives(lanes: Sequence[Lane]) -> list[Lane]:
    """All, or of many the first, the last and some between them."""
    if len(lanes) <= MOST_LANES:
        return list(lanes)
    return [lanes[i * (len(lanes) - 1) // (MOST_LANES - 1)] for i in range(MOST_LANES)]


def bars(lane: Lane, number: int, seconds: float) -> list[Bar]:
    """Those of the arithmetic in the upper half of the lane, messages in the lower."""
    top = number * (2 * ROW + GAP)
    found = []
    for is_message in (False, True):
        done = [each for each in lane.done if (each.task.kind not in COMPUTE) == is_message and each.end > each.start]
        for kind, start, end, words in _joined(sorted(done, key=lambda each: each.start), seconds):
            scale = WIDTH / seconds
            found.append(Bar(kind, start * scale, top + ROW * is_message, (end - start) * scale, words))
    return sorted(found, key=lambda bar: (bar.x, bar.y))


def _joined(done: Sequence[Done], seconds: float) -> Iterator[tuple[str, float, float, str]]:
    """(kind, start, end, words); what would be too narrow to see is drawn together with its neighbours of the kind."""
    narrow, near = LEAST_PIXELS * seconds / WIDTH, 0.3 * seconds / WIDTH
    together: list[Done] = []
    for each in done:
        if together and (
            each.task.kind != together[0].task.kind
            or each.start - together[-1].end > near
            or together[-1].end - together[0].start > narrow
        ):
            yield _bar(together)
            together = []
        together.append(each)
    if together:
        yield _bar(together)


def _bar(together: Sequence[Done]) -> tuple[str, float, float, str]:
    first, start, end = together[0].task, together[0].start, max(each.end for each in together)
    more = f" and {len(together) - 1} more" if len(together) > 1 else ""
    when = f"{_milliseconds(start)} to {_milliseconds(end)} ms, {_milliseconds(end - start)} ms"
    return first.kind, start, end, f"{KINDS[first.kind]}: {first.label}{more}; {when}"


def ticks(seconds: float) -> list[tuple[float, str]]:
    """(pixel, words) of round times, five to ten of them."""
    size = 10.0 ** len(str(int(1e6 * seconds))) / 1e7
    each = next(each for each in (size * factor for factor in (0.1, 0.2, 0.5, 1.0, 2.0)) if seconds / each <= 10)
    return [(i * each / seconds * WIDTH, f"{1e3 * i * each:,.6g} ms") for i in range(int(seconds / each) + 1)]


def _lede(chosen: Candidate, step: Step, hardware: Hardware) -> str:
    return (
        f"One training step on {hardware.name}, simulated: {_milliseconds(step.seconds)} ms, of which ranks compute "
        f"{1 - step.bubble - step.exposed:.1%}, wait for messages of their own {step.exposed:.1%}, and are idle "
        f"{step.bubble:.1%}. Each rank has {chosen.passes} micro-batches of {chosen.rows} rows."
    )


def _lanes_table(step: Step) -> Table:
    titles = ("Computes, ms", "Waits for messages, ms", "Idle, ms")
    rows = [
        (lane.name, _milliseconds(lane.busy), _milliseconds(lane.exposed),
         _milliseconds(step.seconds - lane.busy - lane.exposed)) for lane in step.lanes
    ]  # fmt: skip
    return Table([Column("Ranks"), *(Column(t, "right") for t in titles)], rows, "Lanes: ranks that do the same")


def _parts_table(chosen: Candidate) -> Table:
    parts = causes(chosen.prediction).items()
    rows = [(name, _milliseconds(seconds)) for name, seconds in parts if seconds > 0]
    return Table([Column("Spent on"), Column("ms", "right")], rows, "The longest rank's step, in closed form")


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.4g}"
