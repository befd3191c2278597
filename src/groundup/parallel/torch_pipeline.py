"""Stages of a pipeline run by torch.distributed.pipelining, with the schedules that a plan names.

    gpipe         ScheduleGPipe
    1f1b          Schedule1F1B              at least as many micro-batches as stages
    interleaved   ScheduleInterleaved1F1B   several stages on each rank

Stages are those of `split_blocks`. torch learns from a first pass what stages send each other, so a schedule is built
for each shape of batch. Messages have no tags, so unlike `pipeline.py` this one runs on NCCL, too.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

from groundup.parallel.engine import Loss
from groundup.parallel.plan import Mesh, ParallelPlan
from groundup.parallel.schedules import schedule

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B, "interleaved": ScheduleInterleaved1F1B}


class Stages:
    """This rank's chunks of a pipeline: chunk c of rank r is stage c * ranks + r."""

    def __init__(self, chunks: Sequence[nn.Module], mesh: Mesh, device: torch.device) -> None:
        self.chunks, self.device = chunks, device
        self.plan, self.group = mesh.plan, mesh.group("pipeline")
        self.rank, self.ranks = mesh.place["pipeline"], mesh.size("pipeline")
        self._built: dict[Any, Any] = {}
        self._loss: Loss | None = None
        self._weights: list[Tensor] = []

    @property
    def is_last(self) -> bool:
        """Whether this rank has the stage that ends with the loss."""
        return self.rank == self.ranks - 1

    def run(self, tokens: Tensor, targets: Tensor, inputs: dict[str, Tensor], loss: Loss) -> tuple[Tensor, Tensor]:
        """Forward and backward of one batch, micro-batches one after the other; gradients add up.

        The sum of the loss and the number of tokens: those of the batch on the last rank, zeros on the others.
        """
        inputs = {"tokens": tokens, **inputs}
        shapes = tuple((name, tuple(x.shape), x.dtype) for name, x in inputs.items())
        earlier: list[tuple[nn.Parameter, Tensor]] = []
        if shapes not in self._built:  # whose first pass would forget the gradients that are there
            self._built[shapes] = self._build()
            earlier = [(p, p.grad) for chunk in self.chunks for p in chunk.parameters() if p.grad is not None]
        for p, _ in earlier:
            p.grad = None
        self._loss, self._weights = loss, []
        losses: list[Tensor] = []
        first = (tokens,) if self.rank == 0 else ()
        self._built[shapes].step(*first, target=targets, losses=losses, return_outputs=False, **inputs)
        for p, grad in earlier:
            p.grad = grad if p.grad is None else p.grad + grad
        if not losses:
            zero = torch.zeros((), dtype=torch.float64, device=self.device)
            return zero, zero
        weights = self._weights[-len(losses) :]  # the first pass asks for a loss, too
        return torch.stack([x.detach().double() for x in losses]).sum(), torch.stack(weights).sum()

    def _build(self) -> Any:
        count = self.ranks * len(self.chunks)
        stages = [
            PipelineStage(chunk, number * self.ranks + self.rank, count, self.device, group=self.group)
            for number, chunk in enumerate(self.chunks)
        ]
        kind = SCHEDULES[self.plan.schedule]
        given: Any = stages if self.plan.schedule == "interleaved" else stages[0]
        return kind(given, self.plan.microbatches, loss_fn=self._objective, scale_grads=False)

    def _objective(self, logits: Tensor, targets: Tensor) -> Tensor:
        assert self._loss is not None
        total, weight = self._loss(logits, targets)
        self._weights.append(torch.as_tensor(weight, dtype=torch.float64).detach())
        return total


def check_schedule(plan: ParallelPlan) -> None:
    """Raise ValueError where torch has no such schedule for so many micro-batches."""
    schedule(plan.schedule, plan.pipeline, plan.microbatches, 0, plan.chunks)
    if plan.schedule == "1f1b" and plan.microbatches < plan.pipeline:
        raise ValueError(
            f"plan: torch's 1f1b needs a micro-batch for each of its {plan.pipeline} stages, got "
            f"microbatches={plan.microbatches}; use more, or schedule=gpipe"
        )
