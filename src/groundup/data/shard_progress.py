"""How far the writing of shards is, kept in a file, so that a run that was killed goes on where it was.

A state says which texts are written (their number, and a hash of all of them) and where in the files that is. Texts are
hashed again when a run goes on: those of another job are refused, and never mixed in.
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

from groundup.data.shard_files import STATE, ShardFiles
from groundup.files import read_json, write_json

SECONDS_BETWEEN_SAVES = 10.0
log = logging.getLogger("groundup.data")


@dataclass
class Counts:
    """What the manifest says of the documents."""

    documents: int = 0
    empty_documents: int = 0
    text_bytes: int = 0


class Keeper:
    """Keeps in a file how far the writing is, and which texts that was."""

    def __init__(self, folder: Path, job: dict[str, Any], files: ShardFiles):
        self._path, self._job, self._files = folder / STATE, job, files
        self._digest = hashlib.sha256()
        self._due = time.monotonic() + SECONDS_BETWEEN_SAVES

    def go_on(self, texts: Iterator[str]) -> tuple[Iterator[str], Counts]:
        """The texts that are not written yet, and the counts of those that are; all of them if anything changed."""
        state = self._state()
        if state is None:
            self._start_afresh()
            return texts, Counts()
        counts = Counts(**{field.name: state[field.name] for field in fields(Counts)})
        if not self._files.has(state["position"]):
            log.warning("%s: files are missing or shorter; writing starts afresh", self._path.parent)
            self._start_afresh()
            return texts, Counts()
        for text in islice(texts, counts.documents + counts.empty_documents):
            self._add(text)
        if self._digest.hexdigest() != state["digest"]:
            raise ValueError(f"{self._path.parent}: holds the ids of other texts; remove it to start afresh")
        self._files.go_to(state["position"])
        log.info("going on after %d documents", counts.documents)
        return texts, counts

    def saw(self, batch: list[str], counts: Counts) -> None:
        """Note that these texts are written; save, every now and then."""
        for text in batch:
            self._add(text)
        if time.monotonic() >= self._due:
            state = {"job": self._job, **asdict(counts), "digest": self._digest.hexdigest()}
            write_json(self._path, {**state, "position": self._files.position()})
            self._due = time.monotonic() + SECONDS_BETWEEN_SAVES

    def _add(self, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        self._digest.update(len(data).to_bytes(8, "little") + data)

    def _state(self) -> dict[str, Any] | None:
        try:
            state = read_json(self._path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            log.warning("%s; writing starts afresh", error)
            return None
        if state.get("job") == self._job:
            return state
        log.warning("%s: of another tokenizer or size of files; writing starts afresh", self._path.parent)
        return None

    def _start_afresh(self) -> None:
        for path in self._path.parent.iterdir():
            path.unlink()
