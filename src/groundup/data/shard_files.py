"""The files of a shard set while they are written: filled one after another, hashed meanwhile, and gone on with.

position    what is known of a moment: whole files, and how far the open one is, all of it on the disk
go_to       back to a position, after a kill: what was written behind it is dropped
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from groundup.files import naming

STATE = "state.json"
"""What lies beside the files until all of them are written, see `shard_progress`."""


class ShardFiles:
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

    def position(self) -> dict[str, Any]:
        """Where the writing is, with everything so far on the disk."""
        if self._file is not None:
            with naming(self._file.name):
                self._file.flush()
                os.fsync(self._file.fileno())
        return {"shards": self.shards, "tokens": self.tokens, "open": self._file is not None, "written": self._written}

    def has(self, position: dict[str, Any]) -> bool:
        """Whether the files reach as far as a position says."""
        sizes = [(self.folder / shard["name"], shard["bytes"]) for shard in position["shards"]]
        if position["open"]:
            sizes.append(self._open_file(position))
        return all(path.is_file() and path.stat().st_size >= size for path, size in sizes)

    def _open_file(self, position: dict[str, Any]) -> tuple[Path, int]:
        path = self.folder / f"shard-{len(position['shards']):05d}.bin"
        return path, position["written"] * self.dtype.itemsize

    def go_to(self, position: dict[str, Any]) -> None:
        """Go on at a position that is there, dropping what was written after it."""
        self.shards, self.tokens = list(position["shards"]), position["tokens"]
        path, size = self._open_file(position)
        known = {shard["name"] for shard in self.shards} | {STATE} | ({path.name} if position["open"] else set())
        for stray in self.folder.iterdir():
            if stray.name not in known:
                stray.unlink()
        if not position["open"]:
            return
        os.truncate(path, size)
        with open(path, "rb") as file:
            self._hash = hashlib.file_digest(file, "sha256")
        self._file, self._written = open(path, "ab"), position["written"]  # noqa: SIM115 closed by close()
