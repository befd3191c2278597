"""Token shards: an encoded corpus on disk, with a manifest by which every change to it is noticed."""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from groundup.corpus import Document, read_documents
from groundup.files import atomic_directory, naming, read_json, sha256, write_json
from groundup.tokenizer import Tokenizer

MANIFEST = "manifest.json"
_FORMAT = "groundup token shards 1"
_REMEDY = "restore it, or write the shards again (in the folder of a run: begin a new run)"
_NAME = re.compile(r"shard-\d{5}\.bin")
_LONG_TEXT = 2**22
_PART = 2**18
_LONGEST_PATH = 512
log = logging.getLogger("groundup.data")


@runtime_checkable
class Encoder(Protocol):
    """The part of a `Tokenizer` that is needed here; any object that has it will do."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def end_of_text(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_iterable(self, iterable: Iterable[str]) -> Iterator[int]: ...


Texts = str | Path | Iterable[str | Path | Document]


@dataclass(frozen=True)
class ShardSet:
    """An open set of shards. The files are mapped, not read: only what is asked for comes into memory."""

    directory: Path
    manifest: dict[str, Any]
    files: list[np.memmap]
    stamps: list[tuple[int, int, int]]

    @classmethod
    def open(cls, directory: str | Path, verify: bool = True) -> "ShardSet":
        """Open a set; every file must have its length and, with `verify`, its SHA-256.

        Raises FileNotFoundError when there is no shard set, and ValueError when a file or the manifest was
        changed, cut short, exchanged or removed since it was written.
        """
        directory = Path(directory)
        manifest = _read_manifest(directory)
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        for shard in manifest["shards"]:
            _check_file(directory / shard["name"], shard, verify)
        paths = [directory / shard["name"] for shard in manifest["shards"]]
        files = [np.memmap(path, dtype=dtype, mode="r") for path in paths]
        return cls(directory, manifest, files, [_stamp(path) for path in paths])

    @property
    def num_tokens(self) -> int:
        """Ids in all files, with one end_of_text per document."""
        return self.manifest["tokens"]

    @property
    def num_documents(self) -> int:
        """Documents in the set."""
        return self.manifest["documents"]

    @property
    def text_bytes(self) -> int:
        """Bytes of the documents' text in UTF-8."""
        return self.manifest["text_bytes"]

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary that the ids are from."""
        return self.manifest["vocab_size"]

    @property
    def end_of_text(self) -> int:
        """The id that follows each document."""
        return self.manifest["end_of_text"]

    @property
    def fingerprint(self) -> str:
        """Changes with any token, any count and the tokenizer."""
        return self.manifest["fingerprint"]

    @property
    def tokens(self) -> np.ndarray:
        """All ids: a mapped view where there is one file; for more, a copy in memory (see `gather`)."""
        return self.files[0] if len(self.files) == 1 else np.concatenate(self.files)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(file) for file in self.files])

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` ids from `start` on, as int64, across files."""
        if start < 0 or count < 0 or start + count > self.num_tokens:
            raise ValueError(f"tokens {start:,} to {start + count:,} of {self.num_tokens:,}: outside the set")
        return self.gather(np.arange(start, start + count))

    def gather(self, places: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
        """The ids at these places, as int64."""
        if len(self.files) == 1:
            return self.files[0].take(places).astype(np.int64)
        found = np.empty(places.shape, dtype=np.int64)
        owners = np.searchsorted(self._ends, places, side="right")
        for owner in np.unique(owners):
            here = owners == owner
            file = self.files[owner]
            found[here] = file.take(places[here] - (self._ends[owner] - len(file)))
        return found

    def check_unchanged(self) -> None:
        """Raise ValueError if a file was exchanged, cut short, written to or removed since it was opened.

        Costs one look at each file's size and times. Reading from a mapped file that was cut short would
        otherwise end the process without a message (SIGBUS).
        """
        for shard, stamp in zip(self.manifest["shards"], self.stamps, strict=True):
            path = self.directory / shard["name"]
            if not path.exists() or _stamp(path) != stamp:
                raise ValueError(f"{path}: changed or removed while in use; training on it must not go on")


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: no shard set (no {MANIFEST}); make one with write_shards")
    try:
        manifest = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; {_REMEDY}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise ValueError(f"{path}: not a manifest of {_FORMAT!r}; {_REMEDY}")
    claimed = manifest.pop("fingerprint", None)
    if claimed != _fingerprint(manifest):
        raise ValueError(f"{path}: changed since it was written (its fingerprint does not match); {_REMEDY}")
    if not all(_NAME.fullmatch(shard["name"]) for shard in manifest["shards"]):
        raise ValueError(f"{path}: names a file that is not a shard")
    return {**manifest, "fingerprint": claimed}


def _check_file(path: Path, shard: dict[str, Any], verify: bool) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: missing from the shard set; {_REMEDY}")
    if (size := path.stat().st_size) != shard["bytes"]:
        raise ValueError(f"{path}: {size:,} bytes, written were {shard['bytes']:,}; {_REMEDY}")
    if verify and sha256(path) != shard["sha256"]:
        raise ValueError(f"{path}: its content is not what was written (SHA-256 differs); {_REMEDY}")


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def write_shards(
    texts: Texts,
    tokenizer: Tokenizer | Encoder,
    out_dir: str | Path,
    *,
    shard_tokens: int = 2**30,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ShardSet:
    """Encode documents, each followed by end_of_text, into files of at most `shard_tokens` ids.

    texts: one path or several `Path`s (read with `corpus.read_documents`), or documents, or the texts
        themselves. A plain string alone is a path; strings in a list are texts.
    progress: called with the bytes of text encoded so far.

    Ids are stored as uint16 where the vocabulary allows it (up to 65,536 tokens) and as uint32 beyond. The
    set takes its name only when it is whole: whatever interrupts the writing leaves nothing at `out_dir`.

    Raises ValueError for an id outside the vocabulary (naming the document), for no text at all, and where
    `out_dir` holds something already (`overwrite` replaces a shard set, and nothing else).
    """
    if shard_tokens < 1:
        raise ValueError(f"shard_tokens: {shard_tokens} (expected at least 1)")
    _check_target(Path(out_dir), overwrite)
    began = time.perf_counter()
    with atomic_directory(out_dir) as folder:
        writer = _Writer(folder, _dtype(tokenizer.vocab_size), shard_tokens)
        counts = _encode_all(_documents(texts), tokenizer, writer, progress)
        writer.close()
        manifest = {
            "format": _FORMAT,
            "dtype": writer.dtype.name,
            "vocab_size": tokenizer.vocab_size,
            "end_of_text": tokenizer.end_of_text,
            "tokenizer": tokenizer.fingerprint,
            "tokens": writer.tokens,
            **counts,
            "shards": writer.shards,
        }
        write_json(folder / MANIFEST, {**manifest, "fingerprint": _fingerprint(manifest)})
    seconds = max(time.perf_counter() - began, 1e-9)
    rate = counts["text_bytes"] / seconds / 1e9
    log.info("%s bytes -> %s tokens, %.4f GB/s", f"{counts['text_bytes']:,}", f"{writer.tokens:,}", rate)
    return ShardSet.open(out_dir, verify=False)


def _dtype(vocab_size: int) -> np.dtype:
    if not 0 < vocab_size <= 2**32:
        raise ValueError(f"vocabulary of {vocab_size:,} tokens: expected 1 to 2**32")
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def _check_target(out_dir: Path, overwrite: bool) -> None:
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise ValueError(f"{out_dir}: a file stands where the folder of shards would go")
    names = {p.name for p in out_dir.iterdir()}
    foreign = sorted(name for name in names if name != MANIFEST and not _NAME.fullmatch(name))
    if foreign:
        raise ValueError(f"{out_dir}: not empty, and not only shards (it holds {foreign[0]!r}); name a new folder")
    if names and not overwrite:
        raise ValueError(f"{out_dir}: holds shards already; open them with ShardSet.open, or pass overwrite=True")


def _documents(texts: Texts) -> Iterator[str]:
    if isinstance(texts, (str, Path)):
        yield from (document.text for document in read_documents(texts))
        return
    for item in texts:
        if isinstance(item, Path):
            yield from (document.text for document in read_documents(item))
        elif isinstance(item, Document):
            yield item.text
        elif _is_file(item):
            raise ValueError(f"text {item!r} is the name of a file: pass Path({item!r}) to read it")
        else:
            yield item


def _is_file(text: str) -> bool:
    return 0 < len(text) < _LONGEST_PATH and "\n" not in text and "\0" not in text and os.path.isfile(text)


def _encode_all(
    texts: Iterator[str], tokenizer: Tokenizer | Encoder, writer: "_Writer", progress: Callable[[int], None] | None
) -> dict[str, int]:
    """Encode and write everything; the counts of the manifest."""
    documents, text_bytes, empty = 0, 0, 0
    for text in texts:
        if not text:
            empty += 1
            continue
        for ids in _encode(text, tokenizer):
            writer.write(_checked(ids, tokenizer, documents))
        documents += 1
        text_bytes += len(text.encode("utf-8", "surrogatepass"))
        if progress:
            progress(text_bytes)
    if not documents:
        raise ValueError("no text to write: there are no documents" + (", only empty ones" if empty else ""))
    return {"documents": documents, "empty_documents": empty, "text_bytes": text_bytes}


def _encode(text: str, tokenizer: Tokenizer | Encoder) -> Iterator[list[int]]:
    """The ids of a document and end_of_text: at once, or in blocks where one list would be large."""
    if len(text) <= _LONG_TEXT:
        yield [*tokenizer.encode(text), tokenizer.end_of_text]
        return
    parts = (text[i : i + _PART] for i in range(0, len(text), _PART))
    ids = chain(tokenizer.encode_iterable(parts), [tokenizer.end_of_text])
    while block := list(islice(ids, _PART)):
        yield block


def _checked(ids: list[int], tokenizer: Tokenizer | Encoder, number: int) -> np.ndarray:
    array = np.array(ids, dtype=np.int64)
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= tokenizer.vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(f"document {number}: token id {wrong}, outside 0..{tokenizer.vocab_size - 1:,}")
    return array


class _Writer:
    """Appends ids to the current file, begins the next when it is full, and hashes what it writes."""

    def __init__(self, folder: Path, dtype: np.dtype, shard_tokens: int):
        self.folder, self.dtype, self.shard_tokens = folder, dtype, shard_tokens
        self.shards: list[dict[str, Any]] = []
        self.tokens = 0
        self._file, self._hash, self._written = None, hashlib.sha256(), 0

    def write(self, ids: np.ndarray) -> None:
        while len(ids):
            if self._file is None:
                self._file = open(self.folder / f"shard-{len(self.shards):05d}.bin", "wb")  # noqa: SIM115
                self._hash, self._written = hashlib.sha256(), 0
            part = ids[: self.shard_tokens - self._written]
            data = part.astype(self.dtype).tobytes()
            with naming(self._file.name):
                self._file.write(data)
            self._hash.update(data)
            self._written += len(part)
            self.tokens += len(part)
            ids = ids[len(part) :]
            if self._written == self.shard_tokens:
                self.close()

    def close(self) -> None:
        if self._file is None:
            return
        with naming(self._file.name):
            self._file.close()
        size = self._written * self.dtype.itemsize
        name = Path(self._file.name).name
        self.shards.append({"name": name, "bytes": size, "sha256": self._hash.hexdigest()})
        self._file = None


def _fingerprint(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
