"""Bits per byte on held-out text: this model's beside the baselines'."""

from collections.abc import Sequence
from dataclasses import dataclass

from groundup.report.quantities import number
from groundup.report.run import RunFiles, as_object
from groundup.report.tables import Column, Table


@dataclass(frozen=True)
class Score:
    """Bits per byte of this model or of a baseline; `share` is its part of the largest, for a bar."""

    name: str
    bits_per_byte: float
    share: float
    is_model: bool


def _baselines(run: RunFiles) -> dict[str, float]:
    """Name -> bits per byte; an entry may be the number itself, or an object that holds it."""
    stored = run.result.get("baselines") or run.baselines
    found = {}
    for name, entry in stored.items() if isinstance(stored, dict) else ():
        value = number(entry.get("bits_per_byte") if isinstance(entry, dict) else entry)
        if value is not None:
            found[str(name)] = value
    return found


def baseline_name(name: str) -> str:
    """A baseline's key as a person says it.

    >>> baseline_name("kneser_ney_5"), baseline_name("zstd_19_with_training_text")
    ('Kneser-Ney 5-gram', 'zstd -19 with training text')
    """
    first, _, rest = name.partition("_")
    if first == "zstd":
        level, _, more = rest.partition("_")
        return f"zstd -{level} {more.replace('_', ' ')}".strip()
    if name.startswith("kneser_ney_"):
        return f"Kneser-Ney {name.removeprefix('kneser_ney_')}-gram"
    return "token frequencies" if name == "unigram" else name.replace("_", " ")


def scores(run: RunFiles) -> list[Score]:
    """The worst first."""
    pairs = [(baseline_name(name), value, False) for name, value in _baselines(run).items()]
    if (own := bits_per_byte(run)) is not None:
        pairs.append(("this model", own, True))
    most = max((value for _, value, _ in pairs), default=1.0) or 1.0
    return [Score(n, v, v / most, own) for n, v, own in sorted(pairs, key=lambda pair: -pair[1])]


def bits_per_byte(run: RunFiles) -> float | None:
    """This model's, None when it was not measured."""
    return number(run.result.get("bits_per_byte", run.evaluation.get("bits_per_byte")))


def score_table(scores: Sequence[Score]) -> Table:
    """Bits per byte on held-out text, the worst first."""
    rows = [(score.name, f"{score.bits_per_byte:.4f}") for score in scores]
    ours = frozenset(i for i, score in enumerate(scores) if score.is_model)
    return Table([Column("model"), Column("bits per byte", "right")], rows, emphasis=ours)


def policies(run: RunFiles) -> list[tuple[str, str]]:
    """How each bits-per-byte figure was measured."""
    own = as_object(run.result.get("held_out")).get("policy") or run.evaluation.get("policy")
    stored = [("this model", own)] if own else []
    for name, entry in run.baselines.items():
        if isinstance(entry, dict) and entry.get("policy"):
            stored.append((baseline_name(name), entry["policy"]))
    return [(name, str(policy)) for name, policy in stored]
