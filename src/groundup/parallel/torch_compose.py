"""What a plan does to a model before torch's engine runs it: checked, cut from inside, and its optimizer divided."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Shard

from groundup.parallel.context import context_parallel
from groundup.parallel.engine import Batch, Objective
from groundup.parallel.expert import dealt_parameters, expert_parallel
from groundup.parallel.plan import Mesh, ParallelPlan
from groundup.parallel.sharded_state import members
from groundup.parallel.torch_pipeline import check_schedule
from groundup.parallel.torch_shard import shard_axis
from groundup.parallel.torch_state import Piece, Whole
from groundup.parallel.torch_tensor import tensor_parallel


def check_plan(model: nn.Module, plan: ParallelPlan) -> None:
    """Raise ValueError for what this model, these strategies or torch's engine cannot do together."""
    if any(p.is_meta for p in model.parameters()):
        raise ValueError("plan: the model is on the meta device; give every rank its weights, or zeros to load into")
    if plan.zero and plan.shard > 1:
        raise ValueError(
            f"plan: zero={plan.zero} with shard={plan.shard}, which divides the optimizer's state already; use "
            f"shard={plan.data * plan.shard} without data, or zero=0"
        )
    if plan.recompute and not hasattr(model, "recompute"):
        raise ValueError(f"plan: recompute, but this {type(model).__name__} has no attribute `recompute`")
    if plan.expert > 1 and not any(hasattr(module, "expert_stacks") for module in model.modules()):
        raise ValueError(f"plan: expert={plan.expert}, but this {type(model).__name__} has no experts")
    if plan.pipeline > 1:
        check_schedule(plan)
        for path, module in model.named_modules():
            balance = getattr(getattr(module, "config", None), "balance", None)
            if hasattr(module, "sum_batch") and is_dataclass(balance) and any(vars(balance).values()):
                raise ValueError(f"plan: {path} has a balancing loss, which does not travel through a pipeline")


def divide(chunk: nn.Module, mesh: Mesh, tensor: DeviceMesh) -> None:
    """Everything that cuts or changes modules from inside."""
    plan, together = mesh.plan, mesh.group("expert", "context")
    if plan.expert > 1 and any(hasattr(module, "expert_stacks") for module in chunk.modules()):
        expert_parallel(chunk, mesh.group("expert"), together)
    if plan.tensor > 1:
        tensor_parallel(chunk, tensor, sequence=plan.sequence)
    if plan.context > 1:
        context_parallel(chunk, mesh.group("context"), plan.method, together)


def pieces_of(chunk: nn.Module, whole: Whole, mesh: Mesh) -> dict[str, Piece]:
    """How each parameter has been cut, and will be by fully_shard."""
    dealt, found = dealt_parameters(chunk), {}
    shard = shard_axis(mesh.plan)
    for name, p in chunk.named_parameters():
        cuts: list[tuple[str, int]] = [("expert", 0)] if name in dealt else []
        if isinstance(p, DTensor) and isinstance(p.placements[0], Shard):
            cuts.append(("tensor", p.placements[0].dim))
        if mesh.size(shard) > 1 and (shard == "shard" or mesh.plan.zero == 2):
            cuts.append((shard, 0))
        found[name] = Piece(whole.kinds[whole.names[name]][0], tuple(cuts), mesh)
    return found


def local_part(p: nn.Parameter) -> nn.Parameter:
    """A plain parameter with the storage of this rank's part."""
    with torch.no_grad():
        return nn.Parameter(p.to_local().detach(), p.requires_grad) if isinstance(p, DTensor) else p


def shared_groups(whole: Whole, mesh: Mesh) -> dict[str, dist.ProcessGroup]:
    """For each tensor that stages of several ranks hold alike (a tied embedding) the group that sums its gradient."""
    found = {}
    for holders in sorted({tuple(stages) for stages in whole.stages.values() if len(stages) > 1}):
        for ranks in mesh.plan.groups(["pipeline"]):
            group = dist.new_group([ranks[stage] for stage in holders])
            if mesh.rank in [ranks[stage] for stage in holders]:
                found |= {name: group for name, stages in whole.stages.items() if tuple(stages) == holders}
    return found


class DividedOptimizer:
    """ZeRO stage 1 around an optimizer, or around each of several in one, which keep only what this rank updates."""

    def __init__(self, optimizer: Any, group: dist.ProcessGroup) -> None:
        self.optimizer = optimizer
        self._divided = [_divided(member, group) for member in members(optimizer)]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Of all parameters; options that are set here reach the optimizer before it steps."""
        return [group for each in self._divided for group in each.param_groups]

    def step(self) -> None:
        """Update what this rank owns, then give all ranks all parameters."""
        for each in self._divided:
            each.step()


def _divided(optimizer: Any, group: dist.ProcessGroup) -> ZeroRedundancyOptimizer:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"plan: zero=1 divides a torch.optim.Optimizer; a {type(optimizer).__name__} is none")
    if getattr(optimizer, "together", None) is not None:
        raise ValueError(
            f"plan: zero=1, but {type(optimizer).__name__} shares its work among ranks itself (together=...), for "
            "which each needs all gradients; build it without"
        )

    def keep(groups: list[dict[str, Any]], **_: Any) -> torch.optim.Optimizer:
        for own, part in zip(optimizer.param_groups, groups, strict=True):
            own["params"] = part["params"]
        return optimizer

    whole = [dict(each) for each in optimizer.param_groups]
    return ZeroRedundancyOptimizer(whole, keep, process_group=group)  # type: ignore[arg-type]


class Enclosed(nn.Module):
    """A model in a module whose forward pass is any function of it: what DDP and fully_shard wrap.

    So their hooks are around an objective that calls parts of the model and reads its weights, and not only around a
    call of the model: fully_shard keeps what belongs to no block whole until the backward pass is done.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, objective: Objective, batch: Batch) -> Tensor:
        return objective(self.model, batch)


def keep_lists(block: nn.Module) -> None:
    """Let a block add to the lists that its caller gave it; call this after fully_shard.

    Around dataclasses that hold tensors with gradients fully_shard puts copies, lists included, and what the block
    adds to a copy would be lost.
    """
    given: list[Any] = []

    def before(_block: nn.Module, inputs: tuple[Any, ...]) -> None:
        given[:] = inputs

    def after(_block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_with_lists_of(x, old) for x, old in zip(inputs, given, strict=True))

    block.register_forward_pre_hook(before, prepend=True)
    block.register_forward_pre_hook(after)


def _with_lists_of(x: Any, old: Any) -> Any:
    if not is_dataclass(x) or isinstance(x, type):
        return x
    lists = {field.name: getattr(old, field.name) for field in fields(x)}
    return replace(x, **{name: value for name, value in lists.items() if isinstance(value, list)})
