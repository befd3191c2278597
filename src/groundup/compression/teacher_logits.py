"""A cache of what a teacher says: of each token's distribution the top k, and the rest of it as one class.

    logits.json                   what it is of: k, temperature, rows, ..., digests of teacher, tokenizer and text
    logits-00000.safetensors ...  keys (rows,), ids (rows, seq, k), log_probs (rows, seq, k + 1)

    p       0.61  0.22  0.08 | 0.05 0.02 0.01 0.01       the teacher's softmax of logits / T
    kept    0.61  0.22  0.08 | 0.09                      k = 3 tokens and all others together

A student is held to the same k + 1 classes. The last one matters: without it, the kept ones scaled up to a sum of one
(0.67, 0.24, 0.09), what the student would learn is a distribution that is too sure of itself, and that with every
token. As a class, the tail has the right mass; only how it is spread is left to the student (its gradient there
is q_j (1 - p_tail / q_tail), where the whole distribution would say q_j - p_j). Merging classes never raises a
divergence, so what is minimised is a lower bound of that to the whole distribution, and equal to it for k = vocabulary.
That caches of top k alone bias a student: Anshumann et al. 2025 (arXiv:2503.16870), who draw tokens instead.

Rows are found by what they hold, so a source may give them in any order and as often as it likes. A row is a row's
tokens but the last (that is all the teacher saw), with its positions and segments where it has them.

Bytes for a token: k ids of 2 (4 beyond 65,536 tokens) and k + 1 numbers of 2 (float32: 4). teacher_writing.py writes.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from groundup.config import to_dict
from groundup.data.batch import Batch
from groundup.files import encode_json, read_sealed, sha256
from groundup.model import Transformer
from groundup.tensorfile import validate_header

FORMAT = "groundup teacher logits 1"
HEADER = "logits.json"
DTYPES = {"float16": torch.float16, "float32": torch.float32}
IDS, LOG_PROBS = "top_ids", "top_log_probs"
"""The tensors of a batch: (rows, seq, k), and (rows, seq, k + 1), or k where that is the whole vocabulary."""
_INPUTS = ("tokens", "positions", "segments")
_NUMPY = {torch.float16: "<f2", torch.float32: "<f4", torch.uint16: "<u2", torch.int32: "<i4", torch.int64: "<i8"}
_WORDS = {
    "teacher": "another teacher (its weights or its config differ)",
    "tokenizer": "another tokenizer",
    "data": "other text, or the same in other rows",
}


class Part(NamedTuple):
    """A file of so many rows, and where its tensors begin."""

    path: Path
    rows: int
    begins: dict[str, int]


@dataclass(frozen=True)
class TeacherLogits:
    """An open cache. Nothing of its numbers is in memory: rows are read when a batch has them."""

    folder: Path
    header: dict[str, Any]
    parts: list[Part]
    keys: Int64[np.ndarray, " rows"]
    places: Int64[np.ndarray, " rows"]

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True) -> "TeacherLogits":
        """Open a finished cache; every file must have its length and, with `verify`, its SHA-256.

        Raises FileNotFoundError where there is none, and ValueError, naming the file, for one that is not finished, of
        another version, or was changed or cut short.
        """
        folder = Path(folder)
        header = read_header(folder)
        if (done := sum(part["rows"] for part in header["parts"])) != header["rows"]:
            raise ValueError(f"{folder}: {done:,} of {header['rows']:,} rows are written; run what writes it once more")
        parts = [_open_part(folder, entry, header, verify) for entry in header["parts"]]
        keys = np.concatenate([_read(part, "keys", torch.int64, 0, part.rows) for part in parts])
        if digest_of(keys) != header["data"]:
            raise ValueError(f"{folder}: its files are not those of its {HEADER}; write it again")
        places = np.argsort(keys, kind="stable")
        return cls(folder, header, parts, keys[places], places)

    @property
    def k(self) -> int:
        """Tokens kept of each distribution."""
        return self.header["k"]

    @property
    def vocab_size(self) -> int:
        """Of the teacher."""
        return self.header["vocab_size"]

    @property
    def temperature(self) -> float:
        """That logits were divided by."""
        return self.header["temperature"]

    def beside(self, source: Iterable[Batch]) -> "Taught":
        """The same batches, each with the teacher's `top_ids` and `top_log_probs`: a source for `train`."""
        return Taught(self, source)

    def look_up(self, batch: Batch) -> tuple[Int[Tensor, "rows seq k"], Float[Tensor, "rows seq classes"]]:
        """What the teacher said to each row, on the batch's device. ValueError for a row that is not in the cache."""
        wanted = row_keys(batch)
        found = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        missing = np.flatnonzero(self.keys[found] != wanted)
        if len(missing):
            raise ValueError(
                f"{self.folder}: row {missing[0]} of a batch is not in this cache ({len(missing)} of {len(wanted)} are "
                "not); train on the batches that it was written for: same text, tokenizer, context length and draws"
            )
        rows = [self._row(place) for place in self.places[found].tolist()]
        device = batch["tokens"].device
        ids = torch.from_numpy(np.stack([row[0] for row in rows]).astype(np.int64))
        log_probs = torch.from_numpy(np.stack([row[1] for row in rows]).astype(np.float32))
        return ids.to(device), log_probs.to(device)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([part.rows for part in self.parts])

    def _row(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        number, seq = int(np.searchsorted(self._ends, place, side="right")), self.header["seq"]
        part = self.parts[number]
        place -= int(self._ends[number]) - part.rows
        ids, values = ids_dtype(self.vocab_size), DTYPES[self.header["dtype"]]
        classes = num_classes(self.k, self.vocab_size)
        return (
            _read(part, "ids", ids, place * seq * self.k, seq * self.k).reshape(seq, self.k),
            _read(part, "log_probs", values, place * seq * classes, seq * classes).reshape(seq, classes),
        )


class Taught(Iterable[Batch]):
    """A source whose batches have what the teacher said to them; it goes on wherever the source does."""

    def __init__(self, logits: TeacherLogits, source: Iterable[Batch]) -> None:
        self.logits, self.source = logits, source

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.source:
            ids, log_probs = self.logits.look_up(batch)
            yield {**batch, IDS: ids, LOG_PROBS: log_probs}

    @property
    def epochs_seen(self) -> float | None:
        """How often the data has been seen, where the source knows."""
        return getattr(self.source, "epochs_seen", None)

    def state(self) -> dict[str, Any] | None:
        """Where the source stands; None for one that does not say, which is then gone through anew."""
        return self.source.state() if hasattr(self.source, "state") else None  # type: ignore[attr-defined]

    def load_state(self, state: dict[str, Any]) -> None:
        """Let the source go on where `state` was taken."""
        self.source.load_state(state)  # type: ignore[attr-defined]


def top_classes(
    log_probs: Float[Tensor, "*batch vocab"], ids: Int[Tensor, "*batch k"]
) -> Float[Tensor, "*batch classes"]:
    """Log-probabilities of these tokens and, last, of all others together, unless there are no others."""
    top = log_probs.gather(-1, ids)
    if ids.shape[-1] == log_probs.shape[-1]:
        return top
    others = log_probs.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([top, others], -1)


def num_classes(k: int, vocab_size: int) -> int:
    """The tokens kept and, unless that is all of them, the rest as one."""
    return min(k + 1, vocab_size)


def ids_dtype(vocab_size: int) -> torch.dtype:
    """Of ids in the files."""
    return torch.uint16 if vocab_size <= 2**16 else torch.int32


def row_keys(batch: Batch) -> Int64[np.ndarray, " rows"]:
    """Eight bytes of a hash of all that the teacher sees of a row."""
    inputs = [(name, batch[name][:, :-1].long().cpu().numpy()) for name in _INPUTS if name in batch]
    keys = []
    for row in range(len(batch["tokens"])):
        state = hashlib.blake2b(digest_size=8)
        for name, values in inputs:
            state.update(name.encode() + np.ascontiguousarray(values[row], "<i8").tobytes())
        keys.append(int.from_bytes(state.digest(), "little", signed=True))
    return np.array(keys, np.int64)


def digest_of(keys: Int64[np.ndarray, " rows"]) -> str:
    """SHA-256 of all rows in their order."""
    return hashlib.sha256(np.ascontiguousarray(keys, "<i8").tobytes()).hexdigest()


def model_digest(model: Transformer) -> str:
    """SHA-256 of a model's config, and of its tensors with their names."""
    state = hashlib.sha256(encode_json(to_dict(model.config)))
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def read_header(folder: Path) -> dict[str, Any]:
    """What the cache says of itself. FileNotFoundError without one; ValueError for a damaged or foreign one."""
    file = folder / HEADER
    if not file.is_file():
        raise FileNotFoundError(f"{folder}: no teacher's logits (no {HEADER}); make them with write_teacher_logits")
    header = read_sealed(file)
    if header.get("format") != FORMAT:
        raise ValueError(f"{file}: format {header.get('format')!r}; this version reads {FORMAT!r}")
    return header


def check_same(folder: Path, header: dict[str, Any], asked: dict[str, Any]) -> None:
    """ValueError with every way in which a cache differs from what is asked for."""
    wrong = [
        _WORDS.get(name, f"{name}={header[name]}, and {value} is asked for")
        for name, value in asked.items()
        if header[name] != value
    ]
    if wrong:
        raise ValueError(f"{folder}: holds logits of {'; '.join(wrong)}; name another folder, or remove this one")


def _open_part(folder: Path, entry: dict[str, Any], header: dict[str, Any], verify: bool) -> Part:
    path, remedy = folder / Path(entry["name"]).name, "remove that file and write the cache again: the rest is kept"
    if not path.is_file():
        raise ValueError(f"{path}: missing; write the cache again: the rest is kept")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise ValueError(f"{path}: {size:,} bytes, written were {entry['bytes']:,}; {remedy}")
    if verify and sha256(path) != entry["sha256"]:
        raise ValueError(f"{path}: its content is not what was written (SHA-256 differs); {remedy}")
    tensors = validate_header(path)
    found = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    if found != part_form(entry["rows"], header):
        raise ValueError(f"{path}: its tensors are not those of {HEADER}; {remedy}")
    data = path.stat().st_size - max(tensor.end for tensor in tensors.values())
    return Part(path, entry["rows"], {name: data + tensor.begin for name, tensor in tensors.items()})


def part_form(rows: int, header: dict[str, Any]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Number type and shape of each tensor in a file of so many rows."""
    seq, k, vocab = header["seq"], header["k"], header["vocab_size"]
    return {
        "keys": (torch.int64, (rows,)),
        "ids": (ids_dtype(vocab), (rows, seq, k)),
        "log_probs": (DTYPES[header["dtype"]], (rows, seq, num_classes(k, vocab))),
    }


def _read(part: Part, name: str, dtype: torch.dtype, first: int, count: int) -> np.ndarray:
    """`count` numbers of a tensor. Read and not mapped: a mapped file that is cut short ends the process (SIGBUS)."""
    with open(part.path, "rb") as file:
        file.seek(part.begins[name] + first * dtype.itemsize)
        raw = file.read(count * dtype.itemsize)
    if len(raw) < count * dtype.itemsize:
        raise ValueError(f"{part.path}: cut short while in use; write the cache again")
    return np.frombuffer(raw, _NUMPY[dtype])


def all_keys(batches: Sequence[Batch]) -> Int64[np.ndarray, " rows"]:
    """Of all rows of these batches."""
    return np.concatenate([row_keys(batch) for batch in batches])
