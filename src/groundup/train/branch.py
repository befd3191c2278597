"""Branches of a run: one plateau, and as many cooldowns from its checkpoints as there are ends to try."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from torch import nn

from groundup.data.batch import Batch
from groundup.optim.schedule import Schedule, cooldown
from groundup.train import checkpoint
from groundup.train.api import train
from groundup.train.run import Run
from groundup.train.step import Objective


def cool_down(
    model: nn.Module,
    source: Iterable[Batch],
    objective: Objective,
    optimizer: Any,
    trunk: str | Path,
    plateau: Schedule,
    *,
    steps: int,
    out: str | Path | None = None,
    at: int | None = None,
    shape: Literal["linear", "cosine"] = "linear",
    **options: Any,
) -> Run:
    """Go back to the trunk's checkpoint after `at` steps (its newest), and decay to the end over the next `steps`.

    The result is, to the bit on a CPU, that of a run which knew this end from its beginning; so a loss at several
    lengths costs one trunk and its cooldowns (Hägele et al. 2024, arXiv:2405.18392). The trunk's folder stays as it
    is; `out` is the branch's own. model, source, objective and optimizer are made as for the trunk, `options` are
    those of `train`.

    Raises ValueError where the trunk has no such checkpoint, and names those that it has.
    """
    found = {int(path.name.rpartition("-")[2]): path for path in checkpoint.checkpoints(Path(trunk) / "checkpoints")}
    if not found:
        raise ValueError(f"{trunk}: no checkpoints to branch from; train it with checkpoint_every=...")
    at = max(found) if at is None else at
    if at not in found:
        known = ", ".join(map(str, sorted(found)))
        raise ValueError(f"{trunk}: no checkpoint after {at} steps; there are some after {known} (see `keep` of train)")
    schedule = cooldown(plateau, at, steps, shape)
    return train(
        model, source, objective, optimizer, at + steps, schedule=schedule, resume=found[at], run_dir=out, **options
    )
