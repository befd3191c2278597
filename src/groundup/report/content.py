"""What a report says, as plain values: the page, the JSON beside it and the terminal show the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from groundup.report.comparison import Comparison, comparisons
from groundup.report.facts import cost, facts, notes
from groundup.report.openness import Openness, openness
from groundup.report.quantities import MISSING, number, quantity, short_count
from groundup.report.repetition import advice
from groundup.report.run import RunFiles, Sample
from groundup.report.scores import Score, bits_per_byte, policies, scores
from groundup.report.tables import Column, Table

MOST_SAMPLES = 12
MOST_CHARACTERS = 3000


@dataclass(frozen=True)
class Stage:
    name: str
    seconds: float | None
    predicted_seconds: float | None
    share: float


@dataclass(frozen=True)
class Content:
    """Everything that is shown. A part that the run does not have is empty."""

    name: str
    lede: str
    tiles: list[tuple[str, str, str]]
    scores: list[Score]
    comparisons: list[Comparison]
    stages: list[Stage]
    epochs: float | None
    advice: str
    cost: list[tuple[str, str]]
    samples: list[Sample]
    chat_samples: list[Sample]
    facts: dict[str, list[tuple[str, str]]]
    notes: list[str]
    policies: list[tuple[str, str]]
    openness: Openness
    problems: list[str]


def content(run: RunFiles) -> Content:
    """Work out the report of a run from whatever its folder holds."""
    found, epochs = scores(run), number(run.result.get("epochs", run.training.get("epochs")))
    chat = [sample for sample in run.samples if sample.is_chat]
    return Content(
        name=run.path.resolve().name,
        lede=_lede(run, found),
        tiles=_tiles(run, epochs),
        scores=found,
        comparisons=comparisons(run),
        stages=_stages(run),
        epochs=epochs,
        advice=advice(epochs, _kept(run)) if epochs is not None else "",
        cost=cost(run),
        samples=[_cut(s) for s in run.samples if not s.is_chat][-MOST_SAMPLES:],
        chat_samples=[_cut(s) for s in chat][-MOST_SAMPLES:],
        facts=facts(run, epochs),
        notes=notes(run),
        policies=policies(run),
        openness=openness(run),
        problems=run.problems,
    )


def _kept(run: RunFiles) -> float:
    """The share of training after which the kept weights were made; 1 where the record does not say."""
    kept, steps = number(run.training.get("kept_step")), number(run.training.get("steps"))
    return min(1.0, kept / steps) if kept and steps else 1.0


def stage_table(stages: Sequence[Stage]) -> Table:
    """Where the time went."""
    rows = [
        (s.name, quantity("seconds", s.predicted_seconds), quantity("seconds", s.seconds), f"{100 * s.share:.0f} %")
        for s in stages
    ]
    return Table([Column("stage"), *(Column(t, "right") for t in ("predicted", "measured", "share"))], rows)


def _lede(run: RunFiles, found: list[Score]) -> str:
    parameters, tokens, seconds = (number(run.result.get(k)) for k in ("parameters", "tokens", "seconds"))
    size = f"A model of {short_count(parameters)} parameters" if parameters else "A model"
    made = f", trained on {short_count(tokens)} tokens" if tokens else ""
    spent = f" and built in {quantity('seconds', seconds)}" if seconds else ""
    own = next((s for s in found if s.is_model), None)
    if own is None:
        return f"{size}{made}{spent}. It was not yet measured on held-out text."
    best = min((s for s in found if not s.is_model), key=lambda s: s.bits_per_byte, default=None)
    said = f"{size}{made}{spent}. On text that it never saw it needs {own.bits_per_byte:.3f} bits per byte"
    if best is None:
        return f"{said}."
    change = own.bits_per_byte / best.bits_per_byte - 1
    side = "fewer" if change < 0 else "more"
    return f"{said}, {abs(100 * change):.1f} % {side} than the best simple model, {best.name}."


def _tiles(run: RunFiles, epochs: float | None) -> list[tuple[str, str, str]]:
    """(label, value, small print) of the headline figures that the run has."""
    result, measured = run.result, run.measured
    budget = number(result.get("budget_seconds"))
    mfu = sorted(run.curves["mfu"].y)
    share = number(measured.get("mfu")) or (mfu[len(mfu) // 2] if mfu else None)
    tiles = [
        ("bits per byte", f"{b:.3f}" if (b := bits_per_byte(run)) is not None else "", "held-out text"),
        ("parameters", _short(result.get("parameters")), ""),
        ("tokens seen", _short(result.get("tokens")), f"{epochs:.2f} epochs" if epochs is not None else ""),
        ("time", quantity("seconds", result.get("seconds")), f"of {quantity('seconds', budget)}" if budget else ""),
        (
            "tokens per second",
            _short(measured.get("tokens_per_second")),
            f"MFU {100 * share:.0f} %" if share else "",
        ),
        ("peak memory", quantity("bytes", measured.get("peak_memory_bytes")), ""),
    ]
    return [tile for tile in tiles if tile[1] not in ("", MISSING)]


def _short(value: Any) -> str:
    x = number(value)
    return "" if x is None else short_count(x)


def _stages(run: RunFiles) -> list[Stage]:
    stored = run.result.get("stages")
    entries = [s for s in stored if isinstance(s, dict)] if isinstance(stored, list) else []
    total = sum(number(s.get("seconds")) or 0.0 for s in entries) or 1.0
    return [
        Stage(
            str(s.get("name", "unnamed")),
            number(s.get("seconds")),
            number(s.get("predicted_seconds")),
            (number(s.get("seconds")) or 0.0) / total,
        )
        for s in entries
    ]


def _cut(sample: Sample) -> Sample:
    def short(text: str) -> str:
        return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …"

    turns = tuple((role, short(text)) for role, text in sample.turns[:20])
    return Sample(short(sample.prompt), short(sample.text), sample.settings, sample.is_chat, turns)
