"""Writing a cache of a teacher's top k logits: file by file, each whole or not there, so a stop loses one at most."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groundup.compression.teacher_logits import (
    DTYPES,
    FORMAT,
    HEADER,
    TeacherLogits,
    all_keys,
    check_same,
    digest_of,
    ids_dtype,
    model_digest,
    num_classes,
    read_header,
    row_keys,
    top_classes,
)
from groundup.config import nearest
from groundup.data.batch import Batch, to_device
from groundup.files import sealed, sha256, write_atomic
from groundup.model import Transformer
from groundup.tensorfile import write_tensors
from groundup.tokenizer import Tokenizer

PART_TOKENS = 2**13


@torch.no_grad()
def write_teacher_logits(
    teacher: Transformer,
    batches: Sequence[Batch],
    folder: str | Path,
    *,
    tokenizer: Tokenizer,
    k: int = 64,
    temperature: float = 1.0,
    dtype: str = "float16",
    part_tokens: int = PART_TOKENS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TeacherLogits:
    """Keep what `teacher` says to every row of the batches; returns the open cache.

    batches: all of one context length; each is one pass of the teacher.
    dtype: of log-probabilities, "float16" (off by 1/2048 of themselves at most) or "float32".
    part_tokens: tokens after which a file is written; an interruption loses no more.
    progress: called with rows written and rows in all.

    A folder that this has begun is gone on with, and one that is finished only opened. Raises ValueError for settings
    that make no sense, and for a folder of another teacher, tokenizer, text or settings, or of something else.
    """
    folder = Path(folder)
    header = _asked(teacher, batches, tokenizer, k, temperature, dtype)
    done = _begun(folder, header)
    teacher.eval()
    for number, piece in enumerate(_pieces(batches, part_tokens)):
        if not _has(folder, done, number, piece):
            done[number:] = [_write_part(teacher, piece, folder, number, header), *done[number + 1 :]]
            write_atomic(folder / HEADER, sealed({**header, "parts": done}))
        progress(sum(part["rows"] for part in done[: number + 1]), header["rows"])
    return TeacherLogits.open(folder)


def _has(folder: Path, done: list[dict[str, Any]], number: int, piece: list[Batch]) -> bool:
    """Whether the file of these batches was written, and is there."""
    if number >= len(done):
        return False
    if done[number]["rows"] != _rows(piece):
        raise ValueError(f"{folder}: was written in batches or files of another size; give the same, or another folder")
    return (folder / done[number]["name"]).is_file()


def _rows(piece: list[Batch]) -> int:
    return sum(len(batch["tokens"]) for batch in piece)


def _asked(
    teacher: Transformer, batches: Sequence[Batch], tokenizer: Tokenizer, k: int, temperature: float, dtype: str
) -> dict[str, Any]:
    """The header but for its parts."""
    vocab = teacher.config.vocab_size
    if not 1 <= k <= vocab or not temperature > 0:
        raise ValueError(
            f"teacher logits: k={k}, temperature={temperature}; expected a k from 1 to the {vocab:,} tokens of the "
            "vocabulary, and a temperature above 0"
        )
    if dtype not in DTYPES:
        raise ValueError(f"teacher logits: dtype={dtype!r}{nearest(dtype, DTYPES)}")
    widths = {batch["tokens"].shape[1] for batch in batches}
    if len(widths) != 1 or min(widths) < 2:
        raise ValueError(f"teacher logits: rows of {sorted(widths)} tokens; expected batches of one length above 1")
    keys = all_keys(batches)
    return {
        "format": FORMAT,
        "k": k,
        "temperature": temperature,
        "dtype": dtype,
        "vocab_size": vocab,
        "seq": widths.pop() - 1,
        "rows": len(keys),
        "teacher": model_digest(teacher),
        "tokenizer": tokenizer.fingerprint,
        "data": digest_of(keys),
    }


def _begun(folder: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts that were written."""
    if not (folder / HEADER).is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder}: it already holds something, and no {HEADER}; name another folder")
        write_atomic(folder / HEADER, sealed({**header, "parts": []}))
        return []
    found = read_header(folder)
    check_same(folder, found, header)
    return found["parts"]


def _pieces(batches: Sequence[Batch], part_tokens: int) -> Iterator[list[Batch]]:
    """Consecutive batches of so many tokens together, or one."""
    piece: list[Batch] = []
    for batch in batches:
        piece.append(batch)
        if sum(each["tokens"].numel() for each in piece) >= part_tokens:
            yield piece
            piece = []
    if piece:
        yield piece


def _write_part(
    teacher: Transformer, piece: list[Batch], folder: Path, number: int, header: dict[str, Any]
) -> dict[str, Any]:
    name = f"logits-{number:05}.safetensors"
    kept = [_kept(teacher, batch, header) for batch in piece]
    write_tensors(folder / name, {key: torch.cat([each[key] for each in kept]) for key in kept[0]})
    return {
        "name": name,
        "rows": _rows(piece),
        "bytes": (folder / name).stat().st_size,
        "sha256": sha256(folder / name),
    }


def _kept(teacher: Transformer, batch: Batch, header: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of one batch, as a file has them."""
    there = to_device(batch, teacher.device)
    inputs = {name: there[name][:, :-1] for name in ("positions", "segments") if name in there}
    logits = teacher(there["tokens"][:, :-1], **inputs).float()
    log_probs = (logits / header["temperature"]).log_softmax(-1)
    ids = log_probs.topk(header["k"], -1).indices
    classes = top_classes(log_probs, ids)
    assert classes.shape[-1] == num_classes(header["k"], header["vocab_size"])
    return {
        "keys": torch.from_numpy(row_keys(batch)),
        "ids": ids.cpu().to(ids_dtype(header["vocab_size"])),
        "log_probs": classes.cpu().to(DTYPES[header["dtype"]]),
    }
