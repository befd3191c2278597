"""Saving from many ranks while training goes on.

    step      agree who writes what | copy that |  next steps ...        next save, or finish
    thread                                      |  write | commit  |  <- is waited for, its error is raised on all ranks

In the step, ranks agree, which takes a few small collectives, and copy what they will write to the host. The rest is
done by a thread of each rank (`save_attempt.py`). A kill at any moment leaves the checkpoints that were there, and the
new one whole or not at all. The folder has to be on a file system that all ranks see.
"""

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from groundup.files import encode_json
from groundup.parallel.all_ranks import Ranks
from groundup.parallel.background import Background
from groundup.parallel.checkpoint_index import read_index
from groundup.parallel.pieces import Parts
from groundup.parallel.save_attempt import Attempt
from groundup.parallel.stored_parts import Piece, stored_shape
from groundup.parallel.writers import Division, describe, divide
from groundup.step_folders import free_name, prune, step_folders, sweep

logger = logging.getLogger("groundup.parallel")


class ShardedSaver:
    """Saves a model and its optimizer from all ranks of a group, in the background.

        with ShardedSaver("run/checkpoints", keep=3) as saver:
            for step in ...:
                ...
                if step % 100 == 0:
                    saver.save(step, Parts.of_engine(engine), {"loader": loader.state()})

    Each checkpoint is a folder `step-N` that any number of ranks loads under any plan (`load_sharded`). A second save
    of one step is called `step-N.1`: nothing is overwritten. Every rank calls the same methods in the same order.

    keep: how many are left after a save (None: all), the last good one always among them.
    timeout: seconds that one rank waits for another's files.

    What fails in the background is raised by the next `save` or by `finish`, on all ranks, with the traceback of the
    rank that failed: OSError where it was the disk, ValueError for numbers that are not finite, else RuntimeError. What
    was there before is untouched, and the saver can be used again.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int | None = None,
        group: dist.ProcessGroup | None = None,
        timeout: float = 600.0,
    ) -> None:
        if keep is not None and keep < 1:
            raise ValueError(f"keep={keep}: expected at least 1")
        self.directory, self.keep, self.timeout = Path(directory), keep, timeout
        self._ranks = Ranks(group)
        self._background = Background("checkpoint")
        self._known: list[str] = []
        self._division: Division | None = None
        self._attempt: Attempt | None = None
        self._saved: Path | None = None

    def save(self, step: int, parts: Parts, state: Mapping[str, Any] | None = None) -> None:
        """Begin to save what the weights and states are now; they may change as soon as this returns.

        state: anything that JSON can say, the same on all ranks. Waits for the save before. Raises ValueError, on all
        ranks, where ranks differ in step or state, or their parts do not make up whole tensors.
        """
        error: ValueError | None = None
        body: dict[str, Any] = {}
        pieces: dict[str, Piece] = {}
        try:
            body, pieces = json.loads(encode_json(dict(state or {}))), named_pieces(parts)
        except (ValueError, TypeError) as fault:
            error = ValueError(f"step {step} cannot be saved: {fault}")
        self._agree(error, step, body, describe(pieces))
        self._attempt = attempt = self._begin(step, body)
        try:
            tensors = {name: _copy(pieces[name]) for name in attempt.division.of(self._ranks.rank)}
        except BaseException:
            attempt.give_up()
            raise
        self._background.start(lambda: self._finish(attempt, tensors))

    def finish(self) -> Path | None:
        """Wait until the last save is a checkpoint: its folder, on all ranks. None where nothing was saved.

        A collective, which raises what failed.
        """
        self._settle(None)
        return self._saved

    def __enter__(self) -> "ShardedSaver":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.finish()
        elif (error := self._background.wait()) is not None:  # others may not be here: no collective
            logger.warning("the last checkpoint was not saved", exc_info=error)

    def _settle(self, error: BaseException | None, said: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Wait for the save before, and raise on all ranks what failed on any: there, or now with `error`."""
        attempt, self._attempt = self._attempt, None
        told = self._ranks.raise_first(self._background.wait() or error, said)
        if attempt is not None:
            self._saved = attempt.final
        return told

    def _agree(self, error: BaseException | None, step: int, state: Any, description: str) -> None:
        """Leave in `_division` who writes what, the same on all ranks."""
        said = {"step": step, "state": _digest(json.dumps(state, sort_keys=True))}
        told = self._settle(error, {**said, "parts": _digest(description)})
        for rank, other in enumerate(told):
            for what in said:
                if other[what] != told[0][what]:
                    raise ValueError(f"a save cannot begin: rank {rank} has another {what} than rank 0")
        digests = [other["parts"] for other in told]
        if digests != self._known or self._division is None:
            self._division = divide([json.loads(text) for text in self._ranks.tell(json.dumps(description))])
            self._known = digests

    def _begin(self, step: int, state: dict[str, Any]) -> Attempt:
        """Rank 0 makes the folder."""
        error, names = None, ("", "")
        if self._ranks.rank == 0:
            try:
                names = self._make_folder(step)
            except OSError as fault:
                error = fault
        told = self._ranks.raise_first(error, {"names": names})
        temporary, final = (self.directory / name for name in told[0]["names"])
        assert self._division is not None
        rank, ranks = self._ranks.rank, self._ranks.size
        mark = _mark(temporary)
        return Attempt(temporary, final, mark, rank, step, self._division, state, ranks, self.timeout)

    def _make_folder(self, step: int) -> tuple[str, str]:
        self.directory.mkdir(parents=True, exist_ok=True)
        sweep(self.directory)
        for path in self.directory.glob(".step-*.saving"):
            path.unlink(missing_ok=True)
        final = free_name(self.directory, step)
        temporary = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")
        temporary.mkdir()
        os.close(os.open(_mark(temporary), os.O_CREAT | os.O_WRONLY))
        return temporary.name, final.name

    def _finish(self, attempt: Attempt, tensors: Mapping[str, Tensor]) -> None:
        attempt.run(tensors)
        if self.keep is not None and self._ranks.rank == 0:
            prune(self.directory, self.keep, is_whole)


def named_pieces(parts: Parts) -> dict[str, Piece]:
    """What a checkpoint calls them: `model.<name>`, `optimizer.<key>.<parameter>`."""
    pieces = {f"model.{name}": piece for name, piece in parts.weights.items()}
    return pieces | {f"optimizer.{key}.{name}": piece for name, key, piece in parts.states()}


def is_whole(path: Path) -> bool:
    """Whether a folder's index verifies, and its files are as long as it says. Their bytes are checked in loading."""
    try:
        read_index(path)
    except (ValueError, OSError):
        return False
    return True


def latest_sharded(directory: str | Path) -> Path | None:
    """The newest checkpoint that is whole. Others are passed over, and said so."""
    for path in step_folders(directory):
        try:
            read_index(path)
            return path
        except (ValueError, OSError) as error:
            logger.warning("checkpoint %s is damaged and passed over: %s", path, error)
    return None


def _copy(piece: Piece) -> Tensor:
    """On the host, in memory of its own and in order, as it will be in the file."""
    source = piece.tensor.detach()
    copied = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
    return copied.copy_(source).view(stored_shape(piece.region))


def _mark(temporary: Path) -> Path:
    return temporary.with_suffix(".saving")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
