"""One run of a sweep: train at a rate, stop when it has diverged, and score what has not."""

import math
import statistics
import time
from typing import Any

import torch
from torch import nn

from groundup import data, optim, train
from groundup.device import set_seed
from groundup.evaluation import bits_per_byte
from groundup.scaling.one_run import Material, loss_on, make_loader, make_model, thinned
from groundup.scaling.sweep_search import Job
from groundup.scaling.sweep_settings import SweepSettings
from groundup.scaling.variants import modern
from groundup.train import Guard, objectives

WINDOW = 8
ABOVE = 1.05
"""Times the loss before training: what the mean of the last steps must exceed to count as divergence at once. A model
that knows nothing is at 1, and batches differ by a few percent."""


class Diverged(FloatingPointError):
    """The loss is above where it began."""


def train_at(job: Job, settings: SweepSettings, material: Material, steps: int) -> dict[str, Any]:
    """Train for `steps` with one rate and seed; bits per byte of the held-out text where it did not diverge.

    A run has diverged when its loss is not finite, when the mean of its last steps is 5 % above the loss before
    training (both end it), or when that mean is not below it at the end. Ctrl-C raises KeyboardInterrupt.
    """
    set_seed(job.seed)
    training = settings.training(job.cell.batch_size)
    model = make_model(modern(training), training, job.seed, material.device)
    loader = make_loader(material, training, job.seed)
    start = loss_on(model, next(iter(make_loader(material, training, job.seed))))
    began = time.monotonic()
    losses, fault = _losses(model, make_optimizer(model, job, settings), loader, settings, steps, start)
    if fault is None and not recent(losses) < start:
        fault = "the loss is not below that before training"
    seconds = time.monotonic() - began
    bits = None
    if fault is None:
        bits = bits_per_byte(model, material.tokenizer, material.held_out).bits_per_byte
        if not math.isfinite(bits):
            bits, fault = None, "the held-out loss is not finite"
    return {
        "batch_size": job.cell.batch_size,
        "weight_decay": job.cell.weight_decay,
        "rate": job.rate,
        "seed": job.seed,
        "steps": len(losses),
        "diverged": fault is not None,
        "fault": fault,
        "start": round(start, 5),
        "bits_per_byte": bits,
        "seconds": round(seconds, 3),
        "losses": [[step, loss] for step, loss in thinned(losses) if math.isfinite(loss)],
    }


def make_optimizer(model: nn.Module, job: Job, settings: SweepSettings) -> torch.optim.Optimizer | optim.Optimizers:
    decay = job.cell.weight_decay
    if settings.optimizer == "muon_adamw":
        return optim.muon_adamw(model, settings.adamw_share * job.rate, job.rate, weight_decay=decay)
    return optim.make_optimizer(settings.optimizer, model, lr=job.rate, weight_decay=decay)


def _losses(
    model: nn.Module, optimizer: Any, loader: data.Loader, settings: SweepSettings, steps: int, start: float
) -> tuple[list[float], str | None]:
    """(loss of each step, what ended it before its time)."""
    losses: list[float] = []

    def watch(step: int, model: nn.Module, run: train.Run) -> None:
        losses.append(run.losses[-1])
        if step >= WINDOW and recent(losses) > ABOVE * start:
            raise Diverged(f"the loss rose to {recent(losses):.2f}, from {start:.2f} before training")

    warmup = max(1, round(settings.warmup_share * steps))
    try:
        run = train.train(
            model, loader, objectives.pretraining(model), optimizer, steps,
            schedule=optim.cosine(warmup, steps, final=0.1), clip=settings.clip,
            guard=Guard(max_in_row=0, sigma=None), progress=False, every={1: watch},
        )  # fmt: skip
    except FloatingPointError as error:
        return losses, str(error).splitlines()[0]
    if run.stopped_by == "interrupt":
        raise KeyboardInterrupt
    return losses, None


def recent(losses: list[float]) -> float:
    """The mean of the last WINDOW steps."""
    return statistics.fmean(losses[-WINDOW:])
