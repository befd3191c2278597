"""A plan by torch's own engine: DDP, fully_shard, DTensor and torch.distributed.pipelining, put together in one order.

    split into stages -> experts -> tensor -> context -> recompute -> compile -> data and shard
        torch_pipeline            torch_tensor                                     torch_shard

Each step works on what the one before has left: fully_shard divides slices that tensor parallelism cut, and gathers
them outside of what is compiled. Two axes have no engine of torch's that would fit, and run ours: `expert` (torch has
none that is public; `expert.py`) and `context` (torch's experimental context_parallel replaces PyTorch's own
scaled_dot_product_attention, has no form for CPUs, and would lose windows, packed documents and sinks; `context.py`).

Gradients are sums over tokens, divided by all ranks' number of tokens in `step`. Optimizers are given plain tensors,
the local parts of DTensors: a list of both, or of DTensors on different meshes, is more than fused updates take.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from groundup.config import nearest
from groundup.parallel.context import context_batch
from groundup.parallel.engine import Batch, Loss, Named
from groundup.parallel.plan import Mesh, ParallelPlan
from groundup.parallel.replicate import replicate
from groundup.parallel.sharded_state import members, own_states, place_state
from groundup.parallel.split import split_blocks
from groundup.parallel.torch_compose import (
    Reading,
    check_plan,
    divide,
    divided_optimizer,
    local_part,
    pieces_of,
    shared_groups,
)
from groundup.parallel.torch_pipeline import Stages
from groundup.parallel.torch_shard import (
    DENSE,
    device_mesh,
    replicas,
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
        self._begun = False

    def _wrap(self, dense: DeviceMesh) -> None:
        """What sums gradients, and what runs a batch."""
        self._stages = Stages(self.modules, self.mesh, self.device) if self.plan.pipeline > 1 else None
        self._roots = list(self.modules) if self._stages else [Reading(self.modules[0])]
        self._run: nn.Module = self._roots[0]
        if uses_ddp(self.plan):
            self._run = replicas(self._run, self.mesh.group(*DENSE))
        else:
            for root, chunk in zip(self._roots, self.modules, strict=True):
                shard_parameters(root, chunk, self.mesh, dense)

    def named_parameters(self) -> Named:
        """This rank's pieces as plain tensors, which share their storage with the parameters of `modules`."""
        return list(self._local.items())

    def optimize(self, make: Callable[[Named], Any]) -> None:
        """Build the optimizer; with zero=1 each rank of `data` keeps its part of the parameters.

        Raises ValueError where that is to divide something that is no torch.optim.Optimizer.
        """
        self.optimizer = make([(name, p) for name, p in self._local.items() if p.requires_grad])
        if self.plan.zero == 1:
            self.optimizer = divided_optimizer(self.optimizer, self.mesh.group("data"))

    def accumulate(self, batches: Sequence[Batch], loss: Loss) -> tuple[float, float]:
        """See `engine.Engine`. Layers' own losses, which are means over tokens, are added once for each token.

        Raises RuntimeError for a second call before `step`, and ValueError for a batch that cannot be divided.
        """
        if self._begun:
            raise RuntimeError("accumulate: gradients of a call before are there; give all batches at once, then step")
        self._begun = True
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for number, batch in enumerate(batches):
            with self._summing(is_last=number + 1 == len(batches)):
                sums += torch.stack([x.detach().double() for x in self._backward(batch, loss)])
        last_stage = self._stages is None or self._stages.is_last
        if not last_stage or self.mesh.place["tensor"]:  # counted by another rank
            sums.zero_()
        dist.all_reduce(sums)
        total, weight = sums.tolist()
        return total, weight

    def _backward(self, batch: Batch, loss: Loss) -> tuple[Tensor, Tensor]:
        if self._stages is not None:
            return self._stages.run(*_columns(self._own_rows(batch, self.plan.microbatches)), loss)
        tokens, targets, inputs = _columns(self._own_rows(batch, 1))
        logits, auxiliary = self._run(tokens, **inputs)
        total, weight = loss(logits, targets)
        weight = torch.as_tensor(weight, device=self.device)
        if auxiliary:
            total = total + weight * torch.stack(auxiliary).sum()
        total.backward()
        return total, weight

    def _own_rows(self, batch: Batch, parts: int) -> Batch:
        """This rank's part of the positions, of one micro-batch after the other."""
        if unknown := sorted(batch.keys() - {"tokens", "positions", "segments"}):
            raise ValueError(f"accumulate: {', '.join(unknown)} in a batch; expected tokens, positions, segments")
        rows = len(batch["tokens"])
        if rows % parts:
            raise ValueError(f"accumulate: {rows} rows cannot be divided into {parts} micro-batches")
        if self.plan.context == 1:
            return batch
        split = {name: tensor.chunk(parts) for name, tensor in batch.items()}
        group = self.mesh.group("context")
        own = [context_batch({name: split[name][i] for name in split}, group) for i in range(parts)]
        return {name: torch.cat([part[name] for part in own]) for name in own[0]}

    def _summing(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Only the last batch's backward pass sends what it can send once."""
        if isinstance(self._run, DistributedDataParallel):
            return nullcontext() if is_last else self._run.no_sync()
        if self._stages is None:
            for module in sharded_modules(self._run):
                module.set_requires_all_reduce(is_last, recurse=False)
                module.set_is_last_backward(is_last)
        return nullcontext()

    @torch.no_grad()
    def step(self, divisor: float = 1.0, clip: float = float("inf")) -> float:
        """See `engine.Engine`. A norm that is not finite clips nothing. ValueError for a clip that is not above 0."""
        if not clip > 0:
            raise ValueError(f"clip={clip}: expected a number above 0 (float('inf') does not clip)")
        if self.optimizer is None:
            raise RuntimeError("step: there is no optimizer; call optimize(make) before")
        self._take_gradients()
        norm = self._norm() / divisor
        factor = (min(1.0, clip / (norm + EPS)) if math.isfinite(norm) else 1.0) / divisor
        if grads := [p.grad for p in self._local.values() if p.grad is not None]:
            torch._foreach_mul_(grads, factor)  # pyright: ignore[reportPrivateImportUsage]
        self.optimizer.step()
        for p in self._local.values():
            p.grad = None
        self._begun = False
        return norm

    def _take_gradients(self) -> None:
        """Give the local tensors their gradients, sums over all ranks that have a part."""
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

    def _norm(self) -> float:
        """Of the whole gradient, every element of it once."""
        square = torch.zeros((), dtype=torch.float64, device=self.device)
        for name, p in self._local.items():
            first = self._whole.stages[name][0] == self.mesh.place["pipeline"]
            if p.grad is not None and first and self.pieces[name].counts(self.mesh.place):
                square += torch.linalg.vector_norm(p.grad, dtype=torch.float64).square()
        dist.all_reduce(square)
        return math.sqrt(square.item())

    def full_state_dict(self) -> dict[str, Tensor]:
        """See `engine.Engine`. Buffers are this rank's, those of another stage that stage's."""
        return self._whole.gather(self.pieces, self._tensors())

    @torch.no_grad()
    def load_full(self, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        """See `engine.Engine`. Raises ValueError for an unknown name, another shape, and what is missing in the end."""
        for root in self._roots:
            for module in sharded_modules(root):
                module.reshard()
        own, names = self._tensors(), self._whole.names
        missing = set(self._whole.parameters)
        given: Any = tensors.items() if isinstance(tensors, Mapping) else tensors
        for name, tensor in given:
            if name not in names:
                raise ValueError(f"load_full: the model has no tensor {name!r}{nearest(name, names)}")
            shape, _ = self._whole.kinds[names[name]]
            if tensor.shape != shape:
                raise ValueError(f"load_full: {name} has shape {tuple(tensor.shape)}; expected {tuple(shape)}")
            if (mine := own.get(names[name])) is not None:
                piece = self.pieces.get(names[name])
                mine.copy_(tensor if piece is None else piece.take(tensor))
            missing.discard(names[name])
        if missing:
            raise ValueError(f"load_full: nothing was given for {', '.join(sorted(missing)[:10])}")

    def optimizer_state(self) -> State:
        """See `engine.Engine`."""
        names = {p: name for name, p in self._local.items()}
        local = {names[p]: states for p, states in own_states(self._inner()).items()}
        return self._whole.gather_state(self.pieces, local, self.device, owned=self.plan.zero == 1)

    def load_optimizer_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """See `engine.Engine`. Raises ValueError, before anything changes, for unknown names and other shapes."""
        if unknown := sorted(state.keys() - self._whole.kinds.keys()):
            raise ValueError(f"optimizer state of parameters that the model has not: {', '.join(unknown[:10])}")
        names = {p: name for name, p in self._local.items()}
        found = []
        for member in members(self._inner()):
            for group in member.param_groups:
                for p in group["params"]:
                    piece, name = self.pieces[names[p]], names[p]
                    parts = {key: own_state(piece, name, key, t) for key, t in state.get(name, {}).items()}
                    found.append((member, p, {k: place_state(member, p, group, k, t) for k, t in parts.items()}))
        for member in members(self._inner()):
            member.state.clear()
        for member, p, states in found:
            if states:
                member.state[p] = states

    def _inner(self) -> Any:
        """The optimizer of what this rank updates."""
        if self.optimizer is None:
            raise RuntimeError("there is no optimizer; call optimize(make) before")
        return self.optimizer.optim if self.plan.zero == 1 else self.optimizer

    def _tensors(self) -> dict[str, Tensor]:
        buffers = {name: b for chunk in self.modules for name, b in chunk.named_buffers() if name in self._whole.kinds}
        return {**self._local, **buffers}


def _columns(batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(tokens, targets, whatever else the model takes), of one column less."""
    inputs = {name: tensor[:, :-1] for name, tensor in batch.items() if name != "tokens"}
    return batch["tokens"][:, :-1], batch["tokens"][:, 1:], inputs
