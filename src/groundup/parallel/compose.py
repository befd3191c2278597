"""Which strategies go together, and the model cut by them in one fixed order.

    1  tensor, sequence, expert, context    inside of layers
    2  recompute                            whole blocks, with what was put inside
    3  pipeline                             chains of blocks
    4  data, shard, zero                    what ranks hold alike by then

Each step leaves names as they are, and finds a model that the next can still cut.
"""

from typing import Any

from torch import nn

from groundup.parallel.batch_loss import has_balancing_losses
from groundup.parallel.context import context_parallel
from groundup.parallel.expert import expert_parallel, share_balance
from groundup.parallel.fsdp import fully_shard
from groundup.parallel.plan import Mesh, ParallelPlan
from groundup.parallel.sequence import sequence_parallel
from groundup.parallel.split import split_blocks
from groundup.parallel.tensor import tensor_parallel

_APART = (
    ("zero", "shard", "shard divides the optimizer's state already"),
    ("zero", "expert", "ranks do not share all parameters"),
    ("zero", "pipeline", "ranks do not share all parameters"),
    ("pipeline", "shard", "each micro-batch would gather a stage twice; use data"),
    ("pipeline", "expert", "balancing losses do not travel through a pipeline"),
    ("pipeline", "context", "micro-batches are whole rows"),
    ("pipeline", "sequence", "stages pass on whole sequences"),
)


def check_plan(model: nn.Module, plan: ParallelPlan) -> None:
    """Raise ValueError for what this model or these strategies cannot do together."""
    if fault := apart(plan):
        raise ValueError(f"plan: {fault}")
    if plan.recompute and not hasattr(model, "recompute"):
        raise ValueError(f"plan: recompute=True, but this {type(model).__name__} has no `recompute` to be set")
    if plan.pipeline > 1 and has_balancing_losses(model):
        raise ValueError("plan: balancing losses of experts do not travel through a pipeline; use expert or data")
    if any(p.is_meta for p in model.parameters()):
        raise ValueError("plan: the model is on the meta device; give its weights a place before it is cut")


def apart(plan: ParallelPlan) -> str:
    """Which strategies of the plan do not go together here, and why; "" where all do."""
    found = ((one, other, why) for one, other, why in _APART if _used(plan, one) and _used(plan, other))
    return next((f"{one} and {other} do not go together: {why}" for one, other, why in found), "")


def _used(plan: ParallelPlan, name: str) -> bool:
    return getattr(plan, name) != getattr(ParallelPlan, name)


def cut_layers(model: nn.Module, mesh: Mesh) -> None:
    """Steps 1 and 2, in place."""
    plan = mesh.plan
    whole: Any = model
    batch = mesh.group("expert", "context")
    if plan.tensor > 1:
        (sequence_parallel if plan.sequence else tensor_parallel)(model, mesh.group("tensor"))
    if plan.expert > 1:
        expert_parallel(model, mesh.group("expert"), batch)
    if plan.context > 1:
        context_parallel(model, mesh.group("context"), plan.method, batch)
    if plan.expert * plan.context > 1:
        share_balance(model, batch)
    if plan.recompute:
        whole.recompute = True


def own_stages(model: nn.Module, mesh: Mesh) -> tuple[list[nn.Module], dict[str, int]]:
    """Step 3: (this rank's parts of the model, {a trained parameter of several stages: the first stage's rank})."""
    plan = mesh.plan
    if plan.pipeline == 1:
        return [model], {}
    stages = split_blocks(model, plan.pipeline * plan.chunks)
    holders: dict[str, list[int]] = {}
    for number, stage in enumerate(stages):
        for name, p in stage.named_parameters():
            if p.requires_grad:
                holders.setdefault(name, []).append(number % plan.pipeline)
    shared = {name: ranks[0] for name, ranks in holders.items() if len(set(ranks)) > 1}
    return stages[mesh.place["pipeline"] :: plan.pipeline], shared


def shard_stages(modules: list[nn.Module], mesh: Mesh) -> None:
    """Step 4, where ranks keep a part of each parameter; copies stay what they are."""
    if mesh.plan.shard > 1:
        for module in modules:
            fully_shard(module, group=mesh.group("shard"))
