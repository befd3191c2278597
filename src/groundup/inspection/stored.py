"""What is in a checkpoint, a model file or folder, or a run: read from headers, so nothing large is loaded."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from groundup.config import plural
from groundup.files import read_json, sha256
from groundup.gguf import GGUFFile
from groundup.tensorfile import validate_header
from groundup.train import checkpoint, recorder

LONGEST_VALUE = 80
# What a checkpoint is made of, by the first part of a tensor's name.
PARTS = {"model": "weights", "optimizer": "optimizer state", "rng": "random generators", "run": "records of the run"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor by its header. `part` is what it is for, in a checkpoint."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    part: str = ""

    @property
    def numbers(self) -> int:
        """The product of the sizes."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass
class Stored:
    """`facts` are (name, value) for people, `settings` what a user chose (hyper-parameters), `files` with hashes."""

    kind: str
    path: Path
    facts: list[tuple[str, str]] = field(default_factory=list)
    tensors: list[StoredTensor] = field(default_factory=list)
    settings: list[tuple[str, str]] = field(default_factory=list)
    files: list[tuple[str, int, str]] = field(default_factory=list)

    def totals(self) -> dict[str, tuple[int, int, int]]:
        """part -> (tensors, numbers, bytes), in the order in which the parts occur."""
        sums: dict[str, tuple[int, int, int]] = {}
        for tensor in self.tensors:
            count, numbers, size = sums.get(tensor.part, (0, 0, 0))
            sums[tensor.part] = (count + 1, numbers + tensor.numbers, size + tensor.bytes)
        return sums


def inspect_path(path: str | Path, verify: bool = False) -> Stored:
    """Find out what lies at `path` and describe it. `verify`: hold every byte of a checkpoint against its hashes.

    ValueError for what is neither a checkpoint, a run, a model folder nor a file of tensors, and for damage, which is
    named; FileNotFoundError where there is nothing.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: nothing is there")
    for fits, describe in _KINDS:
        if fits(path):
            return describe(path, verify)
    if (path / "config.json").is_file():
        raise ValueError(f"{path}: a config.json, but no weights (*.safetensors) and no records of a run beside it")
    expected = "a .safetensors or .gguf file, a checkpoint, a model folder or a run"
    raise ValueError(f"{path}: not one of the things that can be looked into: {expected}")


def _checkpoint(path: Path, verify: bool) -> Stored:
    """Tensors are state, which changes with every step; the optimizer's numbers beside them were chosen."""
    manifest = checkpoint.verify(path) if verify else checkpoint.read_manifest(path)
    state = read_json(path / checkpoint.STATE)
    made = Stored("checkpoint", path, [("step", f"{manifest['step']:,}")])
    made.tensors = [replace(t, part=_part(t.name)) for t in _headers(sorted(path.glob("*.safetensors")))]
    for name, value in _object(_object(state).get("fingerprint")).items():
        each = value if isinstance(value, list) else [value]
        numbers = [f" {number}" for number in range(len(each))] if len(each) > 1 else [""]
        made.settings += [(f"{name}{number}", _flat(one)) for number, one in zip(numbers, each, strict=True)]
    made.facts += [(name, _flat(value)) for name, value in _object(state).items() if name != "fingerprint"]
    made.files = [(name, entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()]
    made.facts.append(("hashes", "all files and tensors agree" if verify else "not checked; give --verify"))
    return made


def _safetensors(path: Path, verify: bool) -> Stored:
    made = Stored("safetensors file", path, [("bytes", f"{path.stat().st_size:,}")], _headers([path]))
    return _hashed(made, [path], verify)


def _gguf(path: Path, verify: bool) -> Stored:
    made = Stored("GGUF file", path, [("bytes", f"{path.stat().st_size:,}")])
    with GGUFFile(path) as file:
        made.tensors = [StoredTensor(t.name, t.shape, t.kind.name, t.end - t.begin) for t in file.tensors.values()]
        made.settings = [(name, _flat(value)) for name, value in file.metadata.items()]
    return _hashed(made, [path], verify)


def _model_folder(path: Path, verify: bool) -> Stored:
    weights = sorted(path.glob("*.safetensors"))
    made = Stored("model folder", path, tensors=_headers(weights))
    made.settings = [(name, _flat(value)) for name, value in _object(read_json(path / "config.json")).items()]
    return _hashed(made, sorted(file for file in path.iterdir() if file.is_file()), verify)


def _run(path: Path, verify: bool) -> Stored:
    """A run's stages as its files tell them, and its checkpoints."""
    made = Stored("run", path)
    for name in ("config.json", "plan.json", "result.json"):
        if not (path / name).is_file():
            made.facts.append((name, "absent"))
            continue
        value, stem = read_json(path / name), name.removesuffix(".json")
        rows = [(f"{stem}.{k}", _flat(v)) for k, v in _object(value).items()]
        rows += [(name, f"{plural(len(value), 'entry', 'entries')}")] if isinstance(value, list) else []
        (made.settings if name == "config.json" else made.facts).extend(rows)
    if (path / "metrics.jsonl").is_file():
        with open(path / "metrics.jsonl", "rb") as file:
            made.facts.append(("metrics.jsonl", f"{sum(1 for _ in file):,} records"))
    made.facts.extend(_flight(path))
    for folder in checkpoint.checkpoints(path / "checkpoints"):
        made.facts.append((folder.name, _soundness(folder) if verify else "not checked; give --verify"))
    made.tensors = _headers(sorted(path.glob("*.safetensors")))
    return made


def _flight(path: Path) -> Iterator[tuple[str, str]]:
    """The flight recorder's sheets, and what was found out about each bad step."""
    if (path / recorder.FILE).is_file() and (sheets := recorder.read_flight(path)):
        steps = f"steps {sheets[0]['step']:,} to {sheets[-1]['step']:,}"
        yield recorder.FILE, f"{plural(len(sheets), 'sheet')} of norms by layer, {steps}; groundup report draws them"
    for file in sorted((path / recorder.FOLDER).glob("step-*.json"), key=lambda file: (len(file.name), file.name)):
        try:
            told = _object(read_json(file))
        except (ValueError, OSError):
            yield f"{recorder.FOLDER}/{file.name}", "unreadable"
            continue
        found = _object(told.get("diagnosis"))
        said = [str(part) for part in (told.get("event"), found.get("kind"), found.get("where")) if part]
        yield f"{recorder.FOLDER}/{file.name}", ": ".join(said)


def _soundness(folder: Path) -> str:
    try:
        checkpoint.verify(folder)
    except (ValueError, OSError) as error:
        return f"damaged: {error}"
    return "all files and tensors agree"


def _hashed(made: Stored, files: Iterable[Path], verify: bool) -> Stored:
    """SHA-256 reads everything, so it is asked for."""
    made.files = [(file.name, file.stat().st_size, sha256(file) if verify else "") for file in files]
    return made


def _headers(files: Iterable[Path]) -> list[StoredTensor]:
    return [
        StoredTensor(name, entry.shape, str(entry.dtype).removeprefix("torch."), entry.end - entry.begin)
        for file in files
        for name, entry in validate_header(file).items()
    ]


def _part(name: str) -> str:
    """ "weights", or which of the optimizer's states: optimizer.exp_avg.blocks.0 ... is one of "exp_avg"."""
    first, _, rest = name.partition(".")
    state = f": {rest.partition('.')[0]}" if first == "optimizer" else ""
    return PARTS.get(first, "other") + state


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _flat(value: Any) -> str:
    """On one line, and not longer than one."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 4]} ..."


_KINDS: tuple[tuple[Callable[[Path], bool], Callable[[Path, bool], Stored]], ...] = (
    (lambda p: (p / checkpoint.MANIFEST).is_file() and (p / checkpoint.STATE).is_file(), _checkpoint),
    (lambda p: any((p / name).exists() for name in ("plan.json", "metrics.jsonl", "checkpoints", "result.json")), _run),
    (lambda p: (p / "config.json").is_file() and any(p.glob("*.safetensors")), _model_folder),
    (lambda p: p.is_file() and p.suffix == ".safetensors", _safetensors),
    (lambda p: p.is_file() and p.suffix == ".gguf", _gguf),
)
