"""Pipeline parallelism: each rank holds some of a model's layers, and micro-batches flow through the ranks and back.

    rank 0    embed, blocks 0-3      activations ->
    rank 1           blocks 4-7                     activations ->
    rank 2           blocks 8-11, head                             loss
                                                 <- gradients
                                  <- gradients

A message is as large as one activation, whatever the layers weigh: little to send, for the time in which ranks have
nothing to do. `schedules` says who does what when, as data; here it is done, with sends that nobody waits for.
Huang et al. 2018 (arXiv:1811.06965); Narayanan et al. 2021 (arXiv:2104.04473).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from groundup.parallel.agreement import texts_of_ranks
from groundup.parallel.messages import Mailbox
from groundup.parallel.schedules import Action, Span, schedule

Loss = Callable[[Any, int], Tensor]


class Pipeline:
    """Runs this rank's stages of a chain over the batches of `step`.

        stages = split_blocks(model, ranks)
        pipeline = Pipeline(stages[rank], "1f1b", microbatches=8)
        losses = pipeline.step(tokens, lambda logits, i: cross_entropy_sum(logits, targets[i]))

    A stage is any module. The first is called with an input of `step`, every other with what the one before returned: a
    tensor, or a tuple of tensors. `chunks` are this rank's stages, more than one for "interleaved": chunk c of rank r
    is stage c * ranks + r. Gradients are added to `.grad` in the order of micro-batches, so they equal those of one
    process that accumulates; `shared` names parameters that stages of several ranks hold alike (a tied embedding),
    whose gradients are summed.

    Afterwards `timeline` has when each action ran, and `most_live` how many micro-batches' activations were kept.

    Raises ValueError as `schedule` does, when ranks disagree about the schedule, and for a shared parameter that this
    rank has and no other.
    """

    def __init__(
        self,
        chunks: nn.Module | Sequence[nn.Module],
        name: str,
        microbatches: int,
        *,
        shared: Sequence[str] = (),
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.chunks = [chunks] if isinstance(chunks, nn.Module) else list(chunks)
        self.microbatches, self.group = microbatches, group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.stages = self.size * len(self.chunks)
        self.device = next((p.device for chunk in self.chunks for p in chunk.parameters()), torch.device("cpu"))
        schedules = [schedule(name, self.size, microbatches, rank, len(self.chunks)) for rank in range(self.size)]
        self.actions = schedules[self.rank]
        self.shared = self._find_shared(f"{name}, {microbatches} micro-batches, {len(self.chunks)} chunks", shared)
        self.mailbox = Mailbox(schedules, self.rank, self.device, group)
        self.timeline: list[Span] = []
        self.most_live = 0

    def _find_shared(self, plan: str, shared: Sequence[str]) -> list[tuple[nn.Parameter, list[int]]]:
        """(parameter, the ranks that hold it) for each shared one of this rank, in the same order everywhere."""
        own = {name: p for chunk in self.chunks for name, p in chunk.named_parameters() if name in shared}
        told = [text.split("\n") for text in texts_of_ranks("\n".join([plan, *own]), self.device, self.group)]
        for rank, (other, *_) in enumerate(told):
            if other != told[0][0]:
                raise ValueError(f"pipeline: rank {rank} runs {other}, rank 0 {told[0][0]}")
        holders = {name: [rank for rank, (_, *names) in enumerate(told) if name in names] for name in sorted(shared)}
        for name in shared:
            if len(holders[name]) < min(2, self.size):
                raise ValueError(f"pipeline: shared={name!r} is on rank(s) {holders[name]}; expected at least two")
        return [(own[name], holders[name]) for name in sorted(own)]

    def step(
        self,
        inputs: Sequence[Any] | None,
        loss: Loss | None,
        keywords: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Tensor]:
        """Forward and backward of one batch; the losses of the micro-batches on the last rank, [] on the others.

        inputs: one per micro-batch, which the first rank reads. loss: (the last stage's output, number of the
        micro-batch) -> a scalar, which the last rank calls; sums over tokens, so that their gradients add up. keywords:
        what every stage of this rank is called with besides, per micro-batch (such as positions).

        Raises ValueError for another number of micro-batches, and for a stage whose output changes its shape or type
        between them; what a stage raises comes with a note of the stage and the micro-batch. The other ranks learn of
        it when this one leaves, or by the group's timeout.
        """
        self._check(inputs, loss, keywords)
        live: dict[tuple[int, int], tuple[list[Tensor], list[Tensor]]] = {}
        losses: list[Tensor] = []
        self.timeline, self.most_live = [], 0
        earlier = [p.grad for p, _ in self.shared]
        for p, _ in self.shared:  # only what this step adds is to be summed over ranks
            p.grad = None
        for number, action in enumerate(self.actions):
            stage = action.chunk * self.size + self.rank
            arrived = self.mailbox.receive(action)
            self.mailbox.expect(self.actions[number + 1 : number + 2])
            start = time.perf_counter()
            key = (action.chunk, action.microbatch)
            try:
                if action.kind == "forward":
                    extra = {} if keywords is None else keywords[action.microbatch]
                    given = arrived if stage or inputs is None else [inputs[action.microbatch]]
                    outputs = self._forward(action, given, extra, loss if stage + 1 == self.stages else None)
                    live[key] = arrived, outputs
                    self.most_live = max(self.most_live, len(live))
                    results = outputs
                else:
                    results = _backward(*live.pop(key), arrived)
            except Exception as error:
                error.add_note(f"in the pipeline's stage {stage} (rank {self.rank}): {action}")
                raise
            self.timeline.append(Span(action, start, time.perf_counter()))
            if action.kind == "forward" and stage + 1 == self.stages:
                losses.append(results[0].detach())
            else:
                self.mailbox.send(action, results)
        self.mailbox.finish()
        self._sum_shared(earlier)
        return losses

    def _check(self, inputs: Any, loss: Any, keywords: Any) -> None:
        for name, given in (("inputs", inputs if self.rank == 0 else None), ("keywords", keywords)):
            if given is not None and len(given) != self.microbatches:
                raise ValueError(f"pipeline: {len(given)} {name} for {self.microbatches} micro-batches")
        if inputs is None and self.rank == 0:
            raise ValueError("pipeline: the first rank needs inputs")
        if loss is None and self.rank == self.size - 1:
            raise ValueError("pipeline: the last rank needs a loss")

    def _forward(self, action: Action, given: list[Any], extra: Mapping[str, Any], loss: Loss | None) -> list[Tensor]:
        results = self.chunks[action.chunk](*given, **extra)
        if loss is not None:
            results = loss(results, action.microbatch)
        outputs = list(results) if isinstance(results, tuple | list) else [results]
        if not all(isinstance(t, Tensor) for t in outputs):
            kind = type(results).__name__
            raise ValueError(f"pipeline: a stage returned a {kind}; expected a tensor or a tuple of tensors")
        return outputs

    def _sum_shared(self, earlier: list[Tensor | None]) -> None:
        """Each holder gets the others' gradients and adds all up in the order of ranks, so that all have the same."""
        for (p, holders), before in zip(self.shared, earlier, strict=True):
            own = torch.zeros_like(p) if p.grad is None else p.grad.contiguous()
            parts = {rank: own if rank == self.rank else torch.empty_like(own) for rank in holders}
            others = [rank for rank in holders if rank != self.rank]
            works = [dist.isend(own, group=self.group, group_dst=rank) for rank in others]
            works += [dist.irecv(parts[rank], group=self.group, group_src=rank) for rank in others]
            for work in works:
                assert work is not None
                work.wait()
            total = parts[holders[0]].clone()
            for rank in holders[1:]:
                total += parts[rank]
            p.grad = total if before is None else before.add_(total)


def _backward(inputs: list[Tensor], outputs: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """The gradients of those inputs that have one, given those of the outputs (none: the output is a loss)."""
    ends = [t for t in outputs if t.requires_grad]
    if ends:
        torch.autograd.backward(ends, gradients or None)
    starts = [t for t in inputs if t.requires_grad]
    return [torch.zeros_like(t) if t.grad is None else t.grad for t in starts]


def measured_bubble(pipeline: Pipeline) -> float:
    """The share of time in which the ranks computed nothing, in the last step: a collective.

    Next to (p - 1) / (m + p - 1) it shows what messages and unequal stages cost. The time is that of the rank that took
    longest from its first action to its last, so call `dist.barrier()` before the step; on a GPU the times of actions
    are those of launching them.
    """
    spans = pipeline.timeline
    busy = sum(span.end - span.start for span in spans)
    # A rank begins when its first input has come and ends early; the first rank does neither.
    own = torch.tensor([busy, spans[-1].end - spans[0].start], dtype=torch.float64, device=pipeline.device)
    parts = [torch.empty_like(own) for _ in range(pipeline.size)]
    dist.all_gather(parts, own, group=pipeline.group)
    table = torch.stack(parts)
    return float(1 - table[:, 0].sum() / (pipeline.size * table[:, 1].max()))
