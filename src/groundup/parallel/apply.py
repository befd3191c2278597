"""One plan, one model: our own strategies composed, with the same training step whatever the plan.

    engine = apply_plan(model, ParallelPlan(data=2, tensor=2))           # on each of four ranks
    engine.optimize(lambda named: AdamW([p for _, p in named], lr=1e-3))
    for batches in batches_of(engine.mesh.rows, engine.mesh.row_parts):  # whole rows; ranks of one part get the same
        nats, tokens = engine.accumulate(batches, loss)
        engine.step(divisor=tokens, clip=1.0)

    accumulate     each batch   its part for this rank   forward   backward
                   then         gradients summed over the ranks that had other tokens
    step           the norm over all ranks' parts, each counted once; divide and clip; update

Gradients are sums in the order of ranks, so N ranks of `data` train to the bit as one process that accumulates N
batches, and so do zero and shard with an elementwise optimizer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from groundup.parallel.batch_loss import ModelLoss, columns
from groundup.parallel.buckets import Overlap, make_buckets
from groundup.parallel.compose import check_plan, cut_layers, own_stages, shard_stages
from groundup.parallel.context import context_batch
from groundup.parallel.ddp import sum_bucket
from groundup.parallel.engine import Batch, Loss, Named, Objective
from groundup.parallel.expert import dealt_parameters
from groundup.parallel.fsdp import gathered
from groundup.parallel.norms import global_norm
from groundup.parallel.pipeline import Pipeline
from groundup.parallel.plan import TOKENS, Mesh, ParallelPlan
from groundup.parallel.rank_order import sum_in_rank_order
from groundup.parallel.replicate import replicate
from groundup.parallel.sharded_state import members, own_states, place_state
from groundup.parallel.slices import Names, Slices
from groundup.parallel.zero import ZeRO


def apply_plan(model: nn.Module, plan: ParallelPlan) -> "GroundupEngine":
    """Cut the model in place for this rank of the plan. A collective; keep no reference to the model.

    All ranks get the weights of rank 0. A model is called with tokens, and with positions and segments by name where a
    batch has them; what else a strategy asks of it is in its own file.

    Raises ValueError for strategies that do not go together or not with this model, and for another number of ranks.
    """
    check_plan(model, plan)
    mesh = Mesh(plan)
    replicate(model)
    return GroundupEngine(model, mesh)


class GroundupEngine:
    """See `engine.Engine`."""

    def __init__(self, model: nn.Module, mesh: Mesh) -> None:
        self.mesh, self.plan = mesh, mesh.plan
        self.optimizer: Any = None
        names = Names(model)
        cut_layers(model, mesh)
        self.modules, self._shared = own_stages(model, mesh)
        shard_stages(self.modules, mesh)
        self.slices = Slices(names, self.modules, mesh)
        self._pipeline = self._build_pipeline() if self.plan.pipeline > 1 else None
        self._sums: Overlap | ZeRO | None = None if self.plan.zero else self._build_sums()
        self._summed = False

    def _build_pipeline(self) -> Pipeline:
        own = [name for name in self._shared if name in self.slices.own]
        plan, group = self.plan, self.mesh.group("pipeline")
        return Pipeline(self.modules, plan.schedule, plan.microbatches, shared=own, group=group)

    def _build_sums(self) -> Overlap:
        """Over all ranks that had other tokens; but experts have seen those of their group already."""
        own = self.slices.own
        dealt = {name for module in self.modules for name in dealt_parameters(module)}
        groups, buckets = {}, []
        for axes, names in ((("data", "context"), dealt), (("data", "expert", "context"), own.keys() - dealt)):
            if self.mesh.size(*axes) > 1:
                made = make_buckets([p for name, p in own.items() if name in names and p.requires_grad][::-1])
                groups |= {id(bucket[0]): self.mesh.group(*axes) for bucket in made}
                buckets += made
        return Overlap(buckets, lambda bucket: sum_bucket(bucket, groups[id(bucket[0])]))

    def inner(self) -> Any:
        """See `engine.Engine`."""
        if self.optimizer is None:
            raise RuntimeError("there is no optimizer: call `optimize` before its state is asked for")
        return self.optimizer.optimizer if isinstance(self.optimizer, ZeRO) else self.optimizer

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """See `engine.Engine`."""
        return self.slices.names.shapes

    def cut_axes(self, name: str) -> set[str]:
        """See `engine.Engine`. With zero a parameter is whole, but its state and gradient are its owner's alone."""
        return self.slices.divided(name)

    def named_parameters(self) -> Named:
        """This rank's parameters or its parts of them, under the model's names. No collective."""
        return list(self.slices.own.items())

    def optimize(self, make: Callable[[Named], Any]) -> None:
        """Build the optimizer over what this rank trains, which it must treat elementwise where that is parts."""
        self.optimizer = make([(name, p) for name, p in self.slices.own.items() if p.requires_grad])
        if self.plan.zero:
            (module,) = self.modules
            self._sums = self.optimizer = ZeRO(module, self.optimizer, self.mesh.group(*TOKENS), stage=self.plan.zero)

    def accumulate(self, batches: Sequence[Batch], loss: Loss) -> tuple[float, float]:
        """Forward and backward of this rank's batches of one step, as many on every rank; gradients add up over all.

        The sum of the loss and the number of tokens, over all ranks. Balancing losses of experts are part of the loss,
        each times the tokens of its batch. Raises RuntimeError where the gradients of before have not been used by
        `step`, and ValueError for a batch that cannot be divided as the plan says.
        """
        totals = torch.zeros(2, dtype=torch.float64)
        for number, batch in enumerate(batches):
            for part in self._losses(batch, loss, last=number + 1 == len(batches)):
                totals += torch.stack([value.detach().double().cpu() for value in part])
        self.finish()
        nats, tokens = self.over_ranks(totals).tolist()
        return nats, tokens

    def _losses(self, batch: Batch, loss: Loss, *, last: bool) -> list[tuple[Tensor, Tensor]]:
        """Forward and backward of one batch: its (loss, tokens), of each micro-batch of a pipeline."""
        if self._pipeline is not None:
            with self._micro_batch(last=last):
                return self._piped(batch, loss)
        objective = ModelLoss(loss)
        self.backward(objective, batch, last=last)
        return objective.found

    def backward(self, objective: Objective, batch: Batch, *, last: bool) -> None:
        """See `engine.Engine`."""
        if self._pipeline is not None:
            raise ValueError("backward: no stage of a pipeline is the model that an objective calls; use accumulate")
        with self._micro_batch(last=last):
            objective(self.modules[0], self._part_of(batch)).backward()

    @contextmanager
    def _micro_batch(self, *, last: bool) -> Iterator[None]:
        """Around one forward and backward pass; the last one of a step sends gradients while it makes them."""
        if self._summed:
            raise RuntimeError(
                "gradients of this step are summed over ranks already: give all its batches before `step`"
            )
        if self._sums is None:
            raise RuntimeError("zero: build the optimizer first, with `optimize`, as it decides who owns what")
        # What is gathered, or goes through a pipeline, has its gradients when the backward pass has ended.
        overlaps = last and self._pipeline is None and self.plan.shard == 1
        with nullcontext() if overlaps else self._sums.no_sync(), self._readable():
            yield

    def _readable(self) -> AbstractContextManager[None]:
        """Parameters of the model itself are whole, for a loss that does more than call the model."""
        return gathered(self.modules[0]) if self.plan.shard > 1 else nullcontext()

    def finish(self) -> None:
        """Wait until the gradients are sums over ranks."""
        assert self._sums is not None
        self._sums.finish()
        self._summed = True

    def _part_of(self, batch: Batch) -> Batch:
        """What this rank has of a batch that all ranks of its rows were given: the positions of `context`."""
        return context_batch(batch, self.mesh.group("context")) if self.plan.context > 1 else batch

    def _piped(self, batch: Batch, loss: Loss) -> list[tuple[Tensor, Tensor]]:
        """The same in micro-batches through the pipeline; the last stage has the losses."""
        assert self._pipeline is not None
        count = self.plan.microbatches
        if batch["tokens"].shape[0] % count:
            raise ValueError(f"pipeline: {batch['tokens'].shape[0]} rows cannot be {count} micro-batches of equal size")
        micro = [
            dict(zip(batch, parts, strict=True))
            for parts in zip(*(t.chunk(count) for t in batch.values()), strict=True)
        ]
        divided = [columns(part) for part in micro]
        weights: list[Tensor] = []

        def last(logits: Tensor, number: int) -> Tensor:
            total, weight = loss(logits, divided[number][2])
            weights.append(weight)
            return total

        keywords = [{"tokens": tokens, **inputs} for tokens, inputs, _ in divided]
        losses = self._pipeline.step([tokens for tokens, _, _ in divided], last, keywords)
        return list(zip(losses, weights, strict=True))

    def over_ranks(self, sums: Tensor) -> Tensor:
        """The sum over the ranks that had other tokens, in their order, known to all stages of a pipeline."""
        device = next(iter(self.slices.own.values())).device
        total = sum_in_rank_order(sums.to(device), self.mesh.group(*TOKENS))
        return sum_in_rank_order(total, self.mesh.group("pipeline")) if self._pipeline is not None else total

    @torch.no_grad()
    def clip(self, max_norm: float = float("inf"), eps: float = 1e-6, *, divisor: Tensor | float = 1.0) -> Tensor:
        """Scale all ranks' gradients by min(1, max_norm / (norm + eps)) / divisor; the norm, before, of the quotient.

        One that is not finite scales by the divisor only, as in `optim.clip_by_global_norm`. Raises ValueError for a
        norm that is not above 0.
        """
        if not max_norm > 0:
            raise ValueError(f"clip={max_norm}: expected a number above 0 (float('inf') does not clip)")
        norm = global_norm(self.slices, self._shared) / divisor
        factor = torch.where(norm.isfinite(), (max_norm / (norm + eps)).clamp(max=1.0), 1.0) / divisor
        if grads := [p.grad for p in self.slices.own.values() if p.grad is not None]:
            torch._foreach_mul_(grads, factor)  # pyright: ignore[reportPrivateImportUsage]
        return norm

    def step(self, divisor: float = 1.0, clip: float = float("inf")) -> float:
        """Divide the gradients, clip them by the norm of all ranks', update, forget them. Returns the norm."""
        if self.optimizer is None:
            raise RuntimeError("there is no optimizer: call `optimize` before `step`")
        norm = self.clip(clip, divisor=divisor)
        self.optimizer.step()
        self.zero_grad()
        return float(norm)

    def zero_grad(self) -> None:
        """Forget the gradients: a new step begins."""
        for p in self.slices.own.values():
            p.grad = None
        self._summed = False

    def full_state_dict(self) -> dict[str, Tensor]:
        """Whole tensors by name, on every rank."""
        return self.slices.full_state_dict()

    def load_full(self, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        """Take this rank's part of each whole tensor. ValueError for unknown names, other shapes, missing ones."""
        self.slices.load(tensors)

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """{parameter: {"exp_avg": whole tensor, ...}}, on every rank; nothing of parameters without a state."""
        if isinstance(self.optimizer, ZeRO):
            return self.slices.whole_states(dict(self.optimizer.full_state()))
        names = {p: name for name, p in self.slices.own.items()}
        return self.slices.whole_states({names[p]: states for p, states in own_states(self.inner()).items()})

    def load_optimizer_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take this rank's part of a state that `optimizer_state` gave, under any plan.

        Raises ValueError for parameters that the model does not train.
        """
        if unknown := sorted(state.keys() - set(self.slices.names.trained)):
            raise ValueError(f"optimizer state of parameters that are not trained here: {', '.join(unknown[:10])}")
        names = {p: name for name, p in self.slices.own.items()}
        for member in members(self.inner()):
            member.state.clear()
            for group in member.param_groups:
                for p in group["params"]:
                    part = self.slices.part_of_state(names[p], state.get(names[p], {}))
                    if part:
                        member.state[p] = {k: place_state(member, p, group, k, value) for k, value in part.items()}
