"""What happens to a save in the background of each rank: by files only, since collectives are training's.

    rank r   rank-r-*.safetensors, then rank-r.json: "all that is mine is written, these are its checksums"
    rank 0   waits for every rank-r.json, writes index.json, renames the folder, removes the mark
    rank r   waits until the mark is gone: if the checkpoint has its name then, all went well

The mark is a file beside the folder. Whoever fails removes it, which is possible on a full disk too.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from groundup.files import fsync_directory, read_json, write_durably, write_json
from groundup.parallel.all_ranks import ElsewhereError
from groundup.parallel.checkpoint_index import INDEX, Entry, File, Index, Stored, checksums, header_sha256, read_index
from groundup.parallel.writers import Division
from groundup.tensorfile import split_by_bytes, write_tensors

SHARD_BYTES = 1 << 30
"""Of tensors in a file; the library copies a whole file's while it writes it."""

SHARD_TENSORS = 4096
POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Attempt:
    """One save: folder `temporary`, to be named `final`, while `mark` is there."""

    temporary: Path
    final: Path
    mark: Path
    rank: int
    step: int
    division: Division
    state: dict[str, Any]
    ranks: int
    timeout: float

    def run(self, tensors: Mapping[str, Tensor]) -> None:
        """Write this rank's parts, on the CPU and in no use, and see to it that all become a checkpoint.

        Raises OSError as the disk does, ValueError for numbers that are not finite, TimeoutError for a rank that wrote
        nothing, and ElsewhereError.
        """
        try:
            write_json(self._report(self.rank), self._write(tensors))
            if self.rank == 0:
                self._commit()
            else:
                self._wait_for_commit()
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Let all ranks know that there will be no checkpoint."""
        self.mark.unlink(missing_ok=True)
        if self.rank == 0:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def _report(self, rank: int) -> Path:
        return self.temporary / f"rank-{rank:05d}.json"

    def _write(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """{file: {bytes, header_sha256, tensors: {name: checksums}}} of the files written."""
        written = {}
        for number, shard in enumerate(_shards(tensors), start=1):
            for name, tensor in shard.items():
                if tensor.is_floating_point() and tensor.itemsize > 1 and not bool(tensor.isfinite().all()):
                    raise ValueError(f"{name} is not finite: not saved")
            path = self.temporary / f"rank-{self.rank:05d}-{number:05d}.safetensors"
            self._check_mark()
            write_tensors(path, shard)
            written[path.name] = {
                "bytes": path.stat().st_size,
                "header_sha256": header_sha256(path),
                "tensors": {name: list(checksums(tensor)) for name, tensor in shard.items()},
            }
        return written

    def _commit(self) -> None:
        reports = [self._read(rank) for rank in range(self.ranks)]
        write_durably(self.temporary / INDEX, self._index(reports).encode())
        for rank in range(self.ranks):
            self._report(rank).unlink()
        read_index(self.temporary)  # nothing gets a name that cannot be loaded
        fsync_directory(self.temporary)
        os.rename(self.temporary, self.final)
        fsync_directory(self.final.parent)
        self.mark.unlink(missing_ok=True)

    def _read(self, rank: int) -> dict[str, Any]:
        self._wait(self._report(rank).exists, f"rank {rank} to have written its part")
        return read_json(self._report(rank))

    def _index(self, reports: list[dict[str, Any]]) -> Index:
        files = {
            name: File(file["bytes"], file["header_sha256"]) for report in reports for name, file in report.items()
        }
        parts: dict[str, list[Stored]] = {name: [] for name in self.division.tensors}
        for rank, report in enumerate(reports):
            for file, written in report.items():
                for name, crc32 in written["tensors"].items():
                    parts[name].append(Stored(file, self.division.parts[name][rank], tuple(crc32)))
        tensors = {
            name: Entry(whole.shape, whole.dtype, tuple(parts[name])) for name, whole in self.division.tensors.items()
        }
        return Index(self.step, tensors, files, self.state)

    def _wait_for_commit(self) -> None:
        # Nothing more is to be done here: a program that has ended need not stay for rank 0.
        self._wait(lambda: not self.mark.exists() or not threading.main_thread().is_alive(), "rank 0 to name it", False)
        if not self.final.exists() and threading.main_thread().is_alive():
            raise ElsewhereError(f"{self.final}: another rank failed to save")

    def _wait(self, ready: Callable[[], bool], what: str, marked: bool = True) -> None:
        deadline = time.monotonic() + self.timeout
        while not ready():
            if marked:
                self._check_mark()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.final}: waited {self.timeout:g} s for {what}")
            time.sleep(POLL_SECONDS)

    def _check_mark(self) -> None:
        if not self.mark.exists():
            raise ElsewhereError(f"{self.final}: another rank failed to save")


def _shards(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    names = list(tensors)
    return [
        shard
        for at in range(0, len(names), SHARD_TENSORS)
        for shard in split_by_bytes({name: tensors[name] for name in names[at : at + SHARD_TENSORS]}, SHARD_BYTES)
    ]
