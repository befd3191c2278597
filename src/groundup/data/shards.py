"""Token shards: an encoded corpus on disk, with a manifest by which every change to it is noticed.

shard_writing.py makes them.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from groundup.files import read_json, sha256

MANIFEST = "manifest.json"
FORMAT = "groundup token shards 1"
_REMEDY = "restore it, or write the shards again (in the folder of a run: begin a new run)"
SHARD_NAME = re.compile(r"shard-\d{5}\.bin")


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
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: not a manifest of {FORMAT!r}; {_REMEDY}")
    claimed = manifest.pop("fingerprint", None)
    if claimed != fingerprint_of(manifest):
        raise ValueError(f"{path}: changed since it was written (its fingerprint does not match); {_REMEDY}")
    if not all(SHARD_NAME.fullmatch(shard["name"]) for shard in manifest["shards"]):
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


def fingerprint_of(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its fingerprint."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
