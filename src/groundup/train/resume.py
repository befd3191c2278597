"""Everything that a run must carry over a kill, gathered and put back; and when it is written."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from groundup.files import encode_json
from groundup.optim.schedule import ClockDecay
from groundup.parallel import check_copies
from groundup.parallel.background import Background
from groundup.parallel.engine import Engine
from groundup.train import checkpoint, divided, snapshot
from groundup.train.feed import Feed
from groundup.train.guard import Guard, first_non_finite
from groundup.train.log import MetricsLog
from groundup.train.noise import NoiseScale
from groundup.train.ranks import is_main, largest_over_ranks, world_size
from groundup.train.room import Memory
from groundup.train.run import Run
from groundup.train.scaler import LossScaler

logger = logging.getLogger("groundup.train")


@dataclass
class Resumable:
    """The parts of a run that a checkpoint holds. `engine`: of a model that ranks divide by a plan."""

    model: nn.Module
    optimizer: Any
    schedule: Callable[[int], float] | None
    feed: Feed
    guard: Guard
    fingerprint: dict[str, Any]
    run: Run
    noise: NoiseScale
    memory: Memory
    scaler: LossScaler | None = None
    engine: Engine | None = None

    def tensors(self) -> dict[str, Tensor]:
        """A collective, where there is an engine."""
        losses = torch.tensor(self.run.losses, dtype=torch.float64)
        found = snapshot.capture(self.model, self.optimizer) if self.engine is None else divided.capture(self.engine)
        return found | {"run.losses": losses}

    def weights(self) -> list[tuple[str, Tensor]]:
        """The model's parameters by name; with an engine, this rank's parts of them."""
        return list(self.model.named_parameters() if self.engine is None else self.engine.named_parameters())

    def broken_weight(self) -> str | None:
        """The name of a weight that is not finite; with an engine, of any rank's part."""
        name = first_non_finite(self.weights())
        if self.engine is not None and self.anywhere(name is not None):
            return name or "of another rank"
        return name

    def anywhere(self, here: bool) -> bool:
        """Whether it is so on any of the ranks that save together: all with an engine, else this one."""
        if self.engine is None:
            return here
        return largest_over_ranks([float(here)], next(self.model.parameters()).device)[0] > 0

    def check_copies(self) -> None:
        """Before anything is saved: RuntimeError where a rank has other weights or optimizer state than the rest."""
        if self.engine is not None:
            divided.check_replicas(self.engine)
        elif world_size() > 1:
            tensors = snapshot.capture(self.model, self.optimizer)
            check_copies({name: tensor for name, tensor in tensors.items() if not name.startswith("rng.")})

    def state(self) -> dict[str, Any]:
        return {
            "run": self.run.state(),
            "feed": self.feed.state(),
            "guard": self.guard.state(),
            "noise": self.noise.state(),
            "schedule": self.schedule.state() if isinstance(self.schedule, ClockDecay) else None,
            "fingerprint": self.fingerprint,
            "threads": torch.get_num_threads(),
            "micro_batches": self.memory.stored,
            "scaler": None if self.scaler is None else self.scaler.state(),
        }

    def restore(self, saved: checkpoint.Checkpoint, *, rewind_data: bool = True) -> None:
        """Go back to a checkpoint; the data's cursor too, if asked. Raises ValueError if it does not fit."""
        if changes := snapshot.differences(saved.state["fingerprint"], self.fingerprint):
            raise ValueError(f"{saved.path} is of another run: {'; '.join(changes)}")
        if self.engine is None:
            snapshot.restore(saved.tensors, self.model, self.optimizer, str(saved.path))
        else:
            divided.restore(saved.tensors, self.engine, str(saved.path))
        self.run.load_state(saved.state["run"], saved.tensors["run.losses"].tolist())
        self.guard.load_state(saved.state["guard"])
        self.noise.load_state(saved.state["noise"])
        self.memory.go_on_with(saved.state.get("micro_batches"))
        if self.scaler is not None and (state := saved.state.get("scaler")) is not None:
            self.scaler.load_state(state)
        if isinstance(self.schedule, ClockDecay) and saved.state["schedule"] is not None:
            self.schedule.load_state(saved.state["schedule"])
        if rewind_data:
            self.feed.load_state(saved.state["feed"])


class Saver:
    """Writes checkpoints of one run, and survives a disk that refuses them.

        in the step:    copy all that changes |  next steps ...      next save, or finish
        on a thread                           |  write, prune  |  <- is waited for, its error is told

    every: updates between two saves (None: only where the loop asks). After a failed save the next attempt comes a
    tenth of that later.
    in_background: write on a thread, from a copy. What fails is then known, and told, at the next save, which is the
    next attempt.
    """

    def __init__(self, run_dir: str | Path | None, every: int | None, keep: int, in_background: bool = False):
        self.folder = Path(run_dir) / "checkpoints" if run_dir is not None else None
        self.every, self.keep, self.in_background = every, keep, in_background
        self.last_step = -1
        self._retry_at: int | None = None
        self._writing = Background("checkpoint")
        self._begun: int | None = None  # the step that is being written
        self._copies: dict[str, Tensor] = {}

    def on_time(self, step: int) -> bool:
        """Whether every rank knows that a save is due."""
        return self.every is not None and step % self.every == 0

    def due(self, step: int) -> bool:
        return self.on_time(step) or (self._retry_at is not None and step >= self._retry_at)

    def save(self, parts: Resumable, log: MetricsLog) -> None:
        """A checkpoint of this moment. Weights that are not finite are never saved over good ones.

        The first rank writes; with an engine all ranks call this, to give what they have.
        """
        step = parts.run.step
        if self.folder is None or step == self.last_step or (parts.engine is None and not is_main()):
            return
        self.finish(parts, log)
        if (name := parts.broken_weight()) is not None:
            log.event(step, "not saved", f"weight {name} is not finite")
            return
        log.sync()
        self._begin(parts, step)
        if not self.in_background:
            self.finish(parts, log)

    def finish(self, parts: Resumable, log: MetricsLog) -> None:
        """Wait for the save that is being written; say so if it failed. With an engine, a collective."""
        step, self._begun = self._begun, None
        if step is None:
            return
        error = self._writing.wait()
        if error is not None and not isinstance(error, OSError):
            raise error
        if parts.anywhere(error is not None):
            self.last_step = -1
            self._retry_at = step + max(1, (self.every or 10) // 10)
            next_try = "at the next save" if self.in_background else f"at step {self._retry_at}"
            log.event(step, "save failed", f"{error}; training goes on, next try {next_try}")

    def close(self) -> None:
        """Wait for what is being written, after an error of which the loop ends. No collective."""
        if (error := self._writing.wait()) is not None:
            logger.warning("the last checkpoint was not saved", exc_info=error)

    def _begin(self, parts: Resumable, step: int) -> None:
        assert self.folder is not None
        tensors, state = parts.tensors(), parts.state()
        self._begun, self.last_step, self._retry_at = step, step, None
        if not is_main():
            return
        if self.in_background:
            tensors, state = self._copy(tensors), json.loads(encode_json(state))
        job = partial(checkpoint.save, self.folder, step, tensors=tensors, state=state, keep=self.keep)
        if self.in_background:
            self._writing.start(job)
        else:
            self._writing.run(job)

    def _copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """On the host. The memory of the last copy, which nobody reads any more, is used again: new pages cost more."""
        copies = {}
        for name, tensor in tensors.items():
            kept = self._copies.get(name)
            if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
                kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            copies[name] = kept.copy_(tensor.detach())
        self._copies = copies
        return copies

    def latest(self) -> Path | None:
        """The newest whole checkpoint; one that is being written is waited for."""
        self._writing.join()
        return checkpoint.latest(self.folder) if self.folder is not None else None

    def find(self, resume: bool | str | Path) -> Path | None:
        """The checkpoint that `resume` asks for; None to start anew.

        Raises ValueError when a run that is not resumed would mix with one that is there.
        """
        if isinstance(resume, (str, Path)):
            return Path(resume)
        if resume:
            return self.latest()
        if self.folder is None:
            return None
        if checkpoint.checkpoints(self.folder) or (self.folder.parent / "metrics.jsonl").exists():
            raise ValueError(f"{self.folder.parent} already holds a run: pass resume=True, or another run_dir")
        return None
