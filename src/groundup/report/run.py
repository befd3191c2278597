"""Reading a run directory that may be unfinished, damaged or from elsewhere: what is there, and what is not."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundup.config import plural
from groundup.files import read_json
from groundup.report.quantities import number

JSON_FILES = ("config", "env", "plan", "result", "training", "evaluation", "baselines")
# Absent ones are named in the report; the others only add detail to these.
EXPECTED_FILES = ("config", "env", "plan", "result")
LARGEST_SAMPLE_FILE = 4 * 2**20

# The name in this report -> the names that a record may use for it.
SERIES = {
    "loss": ("loss", "train_loss"),
    "validation_loss": ("validation_loss", "nats_per_token", "val_loss"),
    "validation_bits_per_byte": ("validation_bits_per_byte", "bits_per_byte"),
    "lr": ("lr", "learning_rate"),
    "tokens_per_second": ("tokens_per_second",),
    "mfu": ("mfu",),
    "loss_scale": ("loss_scale",),
    "overflows": ("overflows",),
}


@dataclass(frozen=True)
class Sample:
    """One text that the model wrote. `turns` are (role, text); a plain continuation has the one role "text"."""

    prompt: str
    text: str
    settings: dict[str, Any]
    is_chat: bool = False
    turns: tuple[tuple[str, str], ...] = ()


@dataclass
class Series:
    """Points of one curve in order of `x`, which counts tokens where the records do, else steps."""

    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.x)


@dataclass
class RunFiles:
    """Everything that the report knows. `problems` names the files that were absent, torn or unreadable."""

    path: Path
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    curves: dict[str, Series] = field(default_factory=dict)
    x_unit: str = "step"
    samples: list[Sample] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    flight: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> dict[str, Any]:
        """`run.plan`, `run.result`, ...: the JSON object of that file, {} when there is none."""
        if name in JSON_FILES:
            return self.data.get(name, {})
        raise AttributeError(name)

    @property
    def predicted(self) -> dict[str, Any]:
        """What the plan promised; result.json may hold a later word on it."""
        return {**as_object(self.plan.get("predicted")), **as_object(self.result.get("predicted"))}

    @property
    def measured(self) -> dict[str, Any]:
        """What came; figures at the top of result.json count too."""
        return {
            **self.training,
            **self.evaluation,
            **self.result,
            **as_object(self.result.get("measured")),
        }

    def has(self, name: str) -> bool:
        return (self.path / name).exists()


def as_object(value: Any) -> dict[str, Any]:
    """`value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def read_run(run_dir: str | Path) -> RunFiles:
    """Read what a run left. ValueError for a folder that holds nothing of a run."""
    path = Path(run_dir)
    if not path.is_dir():
        raise ValueError(f"{path}: no such run folder; expected the folder that a build or a training run wrote")
    known = [f"{name}.json" for name in JSON_FILES] + ["metrics.jsonl"]
    if not any((path / name).exists() for name in known):
        raise ValueError(f"{path}: not a run folder; expected at least one of {', '.join(known)} in it")
    run = RunFiles(path)
    for name in JSON_FILES:
        _read_object(run, name)
    _read_curves(run)
    run.events = _records(run, "events.jsonl")
    run.resources = _records(run, "resources.jsonl")
    run.flight = _records(run, "flight.jsonl")
    for file in sorted((path / "samples").glob("*.json")):
        _read_samples(run, file)
    if not run.samples:
        run.problems.append("samples/: no samples")
    return run


def _read_object(run: RunFiles, name: str) -> None:
    file = run.path / f"{name}.json"
    if not file.exists():
        if name in EXPECTED_FILES:
            run.problems.append(f"{name}.json: absent")
        return
    content = _json(run, file)
    if isinstance(content, dict):
        run.data[name] = content
    elif content is not None:
        run.problems.append(f"{name}.json: holds a {type(content).__name__}; expected an object")


def _json(run: RunFiles, file: Path) -> Any:
    try:
        return read_json(file)
    except (ValueError, OSError) as error:
        run.problems.append(f"{file.name}: unreadable ({type(error).__name__})")
        return None


def _read_curves(run: RunFiles) -> None:
    """metrics.jsonl, and curve.jsonl with the measurements on validation text during training."""
    trained = _records(run, "metrics.jsonl")
    measured = _records(run, "curve.jsonl") if run.has("curve.jsonl") else []
    if not trained:
        run.problems.append("metrics.jsonl: no records")
    counted = [number(record.get("tokens")) is not None for record in trained + measured]
    run.x_unit = "tokens" if counted and all(counted) else "step"
    odd = 0
    for name, aliases in SERIES.items():
        series = run.curves[name] = Series()
        for record in trained + measured:
            key = next((alias for alias in aliases if alias in record), None)
            x, y = number(record.get(run.x_unit)), number(record.get(key)) if key else None
            if x is not None and y is not None:
                series.x.append(x)
                series.y.append(y)
            odd += key in ("loss", "train_loss") and y is None
        ordered = sorted(zip(series.x, series.y, strict=True), key=lambda point: point[0])
        series.x, series.y = [x for x, _ in ordered], [y for _, y in ordered]
    if odd:
        run.problems.append(f"metrics.jsonl: {plural(odd, 'record')} with a loss that is no finite number")


def _records(run: RunFiles, name: str) -> list[dict[str, Any]]:
    """The whole records of a .jsonl file; torn and foreign lines are counted, not fatal."""
    file = run.path / name
    if not file.exists():
        return []
    records, torn = [], 0
    for line in file.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif line.strip():
            torn += 1
    if torn:
        run.problems.append(f"{name}: {plural(torn, 'line')} that {'are' if torn > 1 else 'is'} no whole record")
    return records


def _read_samples(run: RunFiles, file: Path) -> None:
    """One sample, a list of them, or an object with a list under "samples"."""
    if file.stat().st_size > LARGEST_SAMPLE_FILE:
        run.problems.append(f"samples/{file.name}: larger than {LARGEST_SAMPLE_FILE // 2**20} MiB, not shown")
        return
    content = _json(run, file)
    if isinstance(content, dict):
        content = content.get("samples", [content])
    for entry in content if isinstance(content, list) else []:
        if isinstance(entry, dict):
            run.samples.append(_sample(entry, is_chat="chat" in file.stem))


def _sample(entry: dict[str, Any], is_chat: bool) -> Sample:
    """A record of samples/: prompt and text, or messages with role and content."""
    messages = entry.get("messages")
    prompt, text = str(entry.get("prompt") or ""), str(entry.get("text") or "")
    shown = {k: v for k, v in entry.items() if k not in ("prompt", "text", "messages", "chat") and v is not None}
    if isinstance(messages, list):
        turns = tuple((str(m.get("role", "")), str(m.get("content", ""))) for m in messages if isinstance(m, dict))
        turns += (("assistant", text),) if text else ()
        return Sample(prompt, text, shown, True, turns)
    is_chat = is_chat or bool(entry.get("chat"))
    text = text.removeprefix(prompt) if prompt and not is_chat else text
    return Sample(prompt, text, shown, is_chat, (("user", prompt), ("assistant", text)) if is_chat else ())
