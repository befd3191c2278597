"""How open a run is: what of it another person holds, and whether that is enough to build it again."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from groundup.config import plural
from groundup.report.run import RunFiles

Level = Literal["closed", "open-weight", "open-weight with its record", "fully open"]

MEANINGS: dict[Level, str] = {
    "closed": "the weights are not in this folder",
    "open-weight": "anyone can run the model, but not see how it came to be",
    "open-weight with its record": "anyone can run the model and read how it was trained, but not repeat it",
    "fully open": "weights, code version, data manifest with licence, seeds and record: it can be built again",
}


@dataclass(frozen=True)
class Item:
    """One thing that openness asks for, and what was found (empty: nothing)."""

    name: str
    found: str


@dataclass(frozen=True)
class Openness:
    level: Level
    items: tuple[Item, ...]

    @property
    def meaning(self) -> str:
        return MEANINGS[self.level]


def openness(run: RunFiles) -> Openness:
    """The level of a run's folder: each level asks for all that the one before does, and more."""
    items = {
        "weights": _present(run, "model.safetensors", "model.safetensors.index.json"),
        "architecture": "config.json" if "model_type" in run.config or "model" in _groundup(run) else "",
        "tokenizer": _present(run, "tokenizer.json"),
        "training record": "metrics.jsonl and result.json" if run.curves["loss"] and run.result else "",
        "plan and settings": _present(run, "plan.json"),
        "code version": _code_version(run),
        "data manifest": _manifest(run),
        "data licence": _licence(run),
        "seed": _seed(run),
        "negative results": _negative(run),
    }
    return Openness(_level(items), tuple(Item(name, found) for name, found in items.items()))


def _level(items: dict[str, str]) -> Level:
    steps: tuple[tuple[Level, tuple[str, ...]], ...] = (
        ("open-weight", ("weights", "architecture", "tokenizer")),
        ("open-weight with its record", ("training record", "plan and settings")),
        ("fully open", ("code version", "data manifest", "data licence", "seed")),
    )
    level: Level = "closed"
    for reached, needs in steps:
        if not all(items[need] for need in needs):
            break
        level = reached
    return level


def _present(run: RunFiles, *names: str) -> str:
    return next((name for name in names if run.has(name)), "")


def _groundup(run: RunFiles) -> dict[str, Any]:
    own = run.config.get("groundup")
    return own if isinstance(own, dict) else {}


def find(value: Any, names: tuple[str, ...], depth: int = 4) -> Iterator[Any]:
    """Every value under one of these keys, in an object of objects."""
    if isinstance(value, dict) and depth:
        for key, inner in value.items():
            if key in names and inner is not None:
                yield inner
            yield from find(inner, names, depth - 1)


def _code_version(run: RunFiles) -> str:
    commit = next(find(run.env, ("commit", "code_hash", "code_sha256")), None)
    if commit:
        return f"commit {str(commit)[:12]}"
    versions = run.env.get("versions")
    release = versions.get("groundup") if isinstance(versions, dict) else None
    return f"groundup {release}" if release else ""


def _manifests(run: RunFiles) -> tuple[Any, ...]:
    return run.plan.get("data"), run.result.get("data"), _groundup(run).get("data")


def _manifest(run: RunFiles) -> str:
    """Only hashes make a manifest: names alone do not say which text it was."""
    for manifest in _manifests(run):
        for hashes in find(manifest, ("hashes", "sha256", "files")):
            if isinstance(hashes, dict | list | str) and hashes:
                size = 1 if isinstance(hashes, str) else len(hashes)
                return f"SHA-256 of {plural(size, 'file')}"
    return ""


def _licence(run: RunFiles) -> str:
    """A licence that says it is unknown is none."""
    for manifest in _manifests(run):
        for licence in find(manifest, ("licence", "license", "licences", "licenses")):
            text = ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence)
            if text.strip() and not text.lower().startswith(("not stated", "unknown", "none")):
                return text
    return ""


def _seed(run: RunFiles) -> str:
    for source in (_groundup(run), run.plan, run.result, run.training):
        for seed in find(source, ("seed", "seeds")):
            return f"seed {seed}"
    return ""


def _negative(run: RunFiles) -> str:
    named = next(find(run.result, ("negative_results",)), None)
    return "in result.json" if named else _present(run, "NEGATIVE_RESULTS.md")
