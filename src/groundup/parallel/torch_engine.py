"""A plan by torch's own engine: DDP, fully_shard, DTensor and torch.distributed.pipelining, put together in one order.

    split into stages -> experts -> tensor -> context -> recompute -> compile -> data and shard
        torch_pipeline            torch_tensor                                     torch_shard

Each step works on what the one before has left: fully_shard divides slices that tensor parallelism cut, and gathers
them outside of what is compiled. Two axes have no engine of torch's that would fit, and run ours: `expert` (torch has
none that is public; `expert.py`) and `context` (torch's experimental context_parallel replaces PyTorch's own
scaled_dot_product_attention, has no form for CPUs, and would lose windows, packed documents and sinks; `context.py`).

Gradients are sums over tokens, divided by all ranks' number of tokens in `clip`. Optimizers are given plain tensors,
the local parts of DTensors: a list of both, or of DTensors on different meshes, is more than fused updates take.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from groundup.parallel.batch_loss import ModelLoss, columns, has_balancing_losses
from groundup.parallel.context import context_batch
from groundup.parallel.engine import Batch, Loss, Named, Objective
from groundup.parallel.plan import Mesh, ParallelPlan
from groundup.parallel.replicate import replicate
from groundup.parallel.sharded_state import members, own_states, place_state
from groundup.parallel.split import split_blocks
from groundup.parallel.torch_compose import (
    DividedOptimizer,
    Enclosed,
    check_plan,
    divide,
    keep_lists,
    local_part,
    pieces_of,
    shared_groups,
)
from groundup.parallel.torch_pipeline import Stages
from groundup.parallel.torch_shard import (
    DENSE,
    Replicas,
    device_mesh,
    shard_parameters,
    sharded_modules,
    uses_ddp,
)
from groundup.parallel.torch_state import Piece, State, Whole, own_state
from groundup.parallel.units import choose_units

EPS = 1e-6
"""Added to the norm that gradients are divided by, as in `optim.clip_by_global_norm`."""


def apply_plan(
    model: nn.Module, plan: ParallelPlan, *, compile: Callable[[nn.Module], Any] | None = None
) -> "TorchEngine":
    """Put `model` on the ranks of the plan, in place; see `engine.Engine`. A collective.

    Keep no reference to the model. All ranks get the weights of rank 0. A model is called with tokens, and with
    positions and segments by name where a batch has them.

    compile: is called with each block, such as `lambda block: block.compile()`.

    Raises ValueError where the ranks' models differ, and for what the plan or the model asks that this engine has not.
    """
    return TorchEngine(model, plan, compile)


class TorchEngine:
    """What `apply_plan` returns. `modules` are this rank's parts of the model, under the model's names; `pieces` says
    which piece this rank has of each parameter."""

    def __init__(self, model: nn.Module, plan: ParallelPlan, compile: Callable[[nn.Module], Any] | None) -> None:
        check_plan(model, plan)
        self.plan, self.mesh = plan, Mesh(plan)
        replicate(model)
        self.device = next(model.parameters()).device
        if plan.recompute:
            model.recompute = True  # type: ignore[assignment]
        stages = split_blocks(model, plan.pipeline * plan.chunks) if plan.pipeline > 1 else [model]
        held = [stages[rank :: plan.pipeline] for rank in range(plan.pipeline)]
        self.modules: Sequence[nn.Module] = held[self.mesh.place["pipeline"]]
        self.optimizer: Any = None
        self._whole = Whole(model, held, self.mesh)
        self._shared = shared_groups(self._whole, self.mesh)
        dense = device_mesh(self.mesh, self.device)
        self.pieces: dict[str, Piece] = {}
        for chunk in self.modules:
            divide(chunk, self.mesh, dense["tensor"])
            self.pieces |= pieces_of(chunk, self._whole, self.mesh)
            if compile is not None:
                for block in choose_units(chunk, None):
                    compile(block)
        self._wrap(dense)
        self._placed = {name: p for chunk in self.modules for name, p in chunk.named_parameters()}
        self._local = {name: local_part(p) for name, p in self._placed.items()}
        self._summed = False

    def _wrap(self, dense: DeviceMesh) -> None:
        """What sums gradients, and what runs a batch."""
        self._stages = Stages(self.modules, self.mesh, self.device) if self.plan.pipeline > 1 else None
        self._roots = list(self.modules) if self._stages else [Enclosed(self.modules[0])]
        self._run: nn.Module = self._roots[0]
        if uses_ddp(self.plan):
            self._run = Replicas(self._run, self.mesh.group(*DENSE))
            return
        for root, chunk in zip(self._roots, self.modules, strict=True):
            shard_parameters(root, chunk, self.mesh, dense)
            for block in choose_units(chunk, None) if has_balancing_losses(chunk) else ():
                keep_lists(block)

    def inner(self) -> Any:
        """See `engine.Engine`."""
        if self.optimizer is None:
            raise RuntimeError("there is no optimizer: call `optimize` before its state is asked for")
        return self.optimizer.optimizer if isinstance(self.optimizer, DividedOptimizer) else self.optimizer

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """See `engine.Engine`."""
        return {name: self._whole.kinds[name][0] for name in self._whole.parameters}

    def cut_axes(self, name: str) -> set[str]:
        """See `engine.Engine`."""
        return {axis for axis, _ in self.pieces[name].cuts}

    def named_parameters(self) -> Named:
        """This rank's pieces as plain tensors, which share their storage with the parameters of `modules`."""
        return list(self._local.items())

    def optimize(self, make: Callable[[Named], Any]) -> None:
        """Build the optimizer; with zero=1 each rank of `data` keeps its part of the parameters.

        Raises ValueError where that is to divide something that is no torch.optim.Optimizer.
        """
        self.optimizer = make([(name, p) for name, p in self._local.items() if p.requires_grad])
        if self.plan.zero == 1:
            self.optimizer = DividedOptimizer(self.optimizer, self.mesh.group("data"))

    def accumulate(self, batches: Sequence[Batch], loss: Loss) -> tuple[float, float]:
        """See `engine.Engine`. Layers' own losses, which are means over tokens, are added once for each token.

        Raises RuntimeError for a second call before `step`, and ValueError for a batch that cannot be divided.
        """
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for number, batch in enumerate(batches):
            for part in self._losses(batch, loss, last=number + 1 == len(batches)):
                totals += torch.stack([value.detach().double() for value in part])
        self.finish()
        total, weight = self.over_ranks(totals).tolist()
        return total, weight

    def _losses(self, batch: Batch, loss: Loss, *, last: bool) -> list[tuple[Tensor, Tensor]]:
        """Forward and backward of one batch: its (loss, tokens)."""
        if self._stages is not None:
            self._check_begun()
            tokens, inputs, targets = columns(self._part_of(batch, self.plan.microbatches))
            return [self._stages.run(tokens, targets, inputs, loss)]
        objective = ModelLoss(loss)
        self.backward(objective, batch, last=last)
        return objective.found

    def backward(self, objective: Objective, batch: Batch, *, last: bool) -> None:
        """See `engine.Engine`."""
        if self._stages is not None:
            raise ValueError("backward: no stage of a pipeline is the model that an objective calls; use accumulate")
        self._check_begun()
        with self._sending(last):
            self._run(objective, self._part_of(batch)).backward()

    def _check_begun(self) -> None:
        if self._summed:
            raise RuntimeError(
                "gradients of this step are summed over ranks already: give all its batches before `step`"
            )

    def _part_of(self, batch: Batch, parts: int = 1) -> Batch:
        """This rank's part of the positions, of one micro-batch after the other."""
        rows = len(batch["tokens"])
        if rows % parts:
            raise ValueError(f"pipeline: {rows} rows cannot be {parts} micro-batches of equal size")
        if self.plan.context == 1:
            return batch
        split = {name: tensor.chunk(parts) for name, tensor in batch.items()}
        group = self.mesh.group("context")
        own = [context_batch({name: split[name][i] for name in split}, group) for i in range(parts)]
        return {name: torch.cat([part[name] for part in own]) for name in own[0]}

    def _sending(self, last: bool) -> AbstractContextManager[None]:
        """Only the last batch's backward pass sends what it can send once."""
        if isinstance(self._run, Replicas):
            return nullcontext() if last else self._run.no_sync()
        for module in sharded_modules(self._run):
            module.set_requires_all_reduce(last, recurse=False)
            module.set_is_last_backward(last)
        return nullcontext()

    def finish(self) -> None:
        """See `engine.Engine`. RuntimeError where DDP did not send all gradients (`Replicas.check_sent`)."""
        if isinstance(self._run, Replicas):
            self._run.check_sent()
        for name, p in self._placed.items():
            local, gradient = self._local[name], p.grad
            if isinstance(gradient, DTensor):
                gradient = gradient.redistribute(placements=p.placements).to_local()  # type: ignore[union-attr]
            p.grad = None
            local.grad = gradient
        for name, group in self._shared.items():
            local = self._local[name]
            local.grad = torch.zeros_like(local) if local.grad is None else local.grad.contiguous()
            dist.all_reduce(local.grad, group=group)
        self._summed = True

    def over_ranks(self, sums: Tensor) -> Tensor:
        """See `engine.Engine`. Ranks of `tensor` have the same tokens, so the first one's count."""
        total = torch.zeros_like(sums) if self.mesh.place["tensor"] else sums.clone()
        dist.all_reduce(total)
        return total

    @torch.no_grad()
    def clip(self, max_norm: float = float("inf"), *, divisor: Tensor | float = 1.0) -> Tensor:
        """See `engine.Engine`."""
        if not max_norm > 0:
            raise ValueError(f"clip={max_norm}: expected a number above 0 (float('inf') does not clip)")
        norm = self._norm() / divisor
        factor = torch.where(norm.isfinite(), (max_norm / (norm + EPS)).clamp(max=1.0), 1.0) / divisor
        if grads := [p.grad for p in self._local.values() if p.grad is not None]:
            torch._foreach_mul_(grads, factor)  # pyright: ignore[reportPrivateImportUsage]
        return norm

    def _norm(self) -> Tensor:
        """Of the whole gradient, every element of it once."""
        square = torch.zeros((), dtype=torch.float64, device=self.device)
        for name, p in self._local.items():
            first = self._whole.stages[name][0] == self.mesh.place["pipeline"]
            if p.grad is not None and first and self.pieces[name].counts(self.mesh.place):
                square += torch.linalg.vector_norm(p.grad, dtype=torch.float64).square()
        dist.all_reduce(square)
        double = any(p.dtype == torch.float64 for p in self._local.values())
        return square.sqrt().to(torch.float64 if double else torch.float32)

    def step(self, divisor: float = 1.0, clip: float = float("inf")) -> float:
        """See `engine.Engine`. A norm that is not finite clips nothing. ValueError for a clip that is not above 0."""
        if self.optimizer is None:
            raise RuntimeError("there is no optimizer: call `optimize` before `step`")
        norm = self.clip(clip, divisor=divisor)
        self.optimizer.step()
        self.zero_grad()
        return float(norm)

    def zero_grad(self) -> None:
        """See `engine.Engine`."""
        for p in (*self._placed.values(), *self._local.values()):
            p.grad = None
        self._summed = False

    def full_state_dict(self) -> dict[str, Tensor]:
        """See `engine.Engine`. Buffers are this rank's, those of another stage that stage's."""
        return self._whole.gather(self.pieces, self._tensors())

    @torch.no_grad()
    def load_full(self, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        """See `engine.Engine`. Raises ValueError for an unknown name, another shape, and what is missing in the end."""
        for root in self._roots:
            for module in sharded_modules(root):
                module.reshard()
        self._whole.load(tensors, self.pieces, self._tensors())

    def optimizer_state(self) -> State:
        """See `engine.Engine`."""
        names = {p: name for name, p in self._local.items()}
        local = {names[p]: states for p, states in own_states(self.inner()).items()}
        return self._whole.gather_state(self.pieces, local, self.device, owned=self.plan.zero == 1)

    def load_optimizer_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """See `engine.Engine`. Raises ValueError, before anything changes, for unknown names and other shapes."""
        if unknown := sorted(state.keys() - self._whole.kinds.keys()):
            raise ValueError(f"optimizer state of parameters that the model has not: {', '.join(unknown[:10])}")
        names = {p: name for name, p in self._local.items()}
        found = []
        for member in members(self.inner()):
            for group in member.param_groups:
                for p in group["params"]:
                    piece, name = self.pieces[names[p]], names[p]
                    parts = {key: own_state(piece, name, key, t) for key, t in state.get(name, {}).items()}
                    found.append((member, p, {k: place_state(member, p, group, k, t) for k, t in parts.items()}))
        for member in members(self.inner()):
            member.state.clear()
        for member, p, states in found:
            if states:
                member.state[p] = states

    def _tensors(self) -> dict[str, Tensor]:
        buffers = {name: b for chunk in self.modules for name, b in chunk.named_buffers() if name in self._whole.kinds}
        return {**self._local, **buffers}
