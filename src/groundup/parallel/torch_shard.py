"""The axes along which gradients are summed, by torch's own wrappers: DDP, and fully_shard for everything else.

    data, context            DistributedDataParallel: buckets, sent while earlier layers still compute
    shard                    fully_shard (FSDP2, ZeRO-3): parameters gathered by block, freed, gradients scattered
    data x shard             fully_shard on a mesh of two axes, (replicate, shard): hybrid sharding
    data with tensor,        the same mesh with one rank along `shard`: DDP takes neither DTensors nor stages whose
    pipeline or expert       backward passes a schedule calls
    zero=2                   fully_shard over `data` that keeps parameters whole from the forward pass to the backward
                             pass: gradients and the optimizer's state are divided, and parameters sent once

Both divide by the number of ranks unless told otherwise; here gradients are sums, as losses are sums over tokens.
Experts' gradients are whole after the backward pass over the ranks of `expert`, so the experts are on a mesh of their
own, without that axis. Zhao et al. 2023 (arXiv:2304.11277); Rajbhandari et al. 2019 (arXiv:1910.02054).
"""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from groundup.parallel.expert import dealt_parameters
from groundup.parallel.plan import AXES, Mesh, ParallelPlan
from groundup.parallel.units import choose_units

DENSE = ("data", "expert", "context")
EXPERT = ("data", "context")
"""What a parameter has copies along, besides `shard`: most of them, and experts."""

_BUFFERS = "forward_sync_buffers"  # until torch 2.12 under another name
if _BUFFERS not in inspect.signature(DistributedDataParallel.__init__).parameters:
    _BUFFERS = "broadcast_buffers"


def uses_ddp(plan: ParallelPlan) -> bool:
    """Whether DistributedDataParallel sums this plan's gradients."""
    alone = plan.shard == plan.tensor == plan.expert == plan.pipeline == 1 and plan.zero < 2
    return alone and plan.data * plan.context > 1


def shard_axis(plan: ParallelPlan) -> str:
    """The axis whose ranks hold a part of each parameter."""
    return "data" if plan.zero == 2 else "shard"


def device_mesh(mesh: Mesh, device: torch.device) -> DeviceMesh:
    """(replicate, shard, tensor) of the ranks that share this rank's layers, from the groups of the plan's mesh."""
    return _mesh(mesh, device, DENSE, ("tensor",))


class Replicas(DistributedDataParallel):
    """DDP whose gradients are sums, and which knows whether all of them have been sent."""

    def __init__(self, model: nn.Module, group: dist.ProcessGroup) -> None:
        options: dict[str, Any] = {_BUFFERS: False}
        super().__init__(model, process_group=group, init_sync=False, **options)
        self._sent = 0
        self.register_comm_hook(group, self._sum)

    def check_sent(self) -> None:
        """After a backward pass that sends: RuntimeError where something has stayed behind, until the next such pass.

        A bucket is sent when all of its parameters have a gradient, so one that the objective did not use keeps back
        others, whose gradients are then this rank's alone.
        """
        trained = [name for name, p in self.module.named_parameters() if p.requires_grad]
        sent, self._sent = self._sent, 0
        if sent != len(trained):
            unused = [name for name, p in self.module.named_parameters() if p.requires_grad and p.grad is None]
            which = ", ".join(name.removeprefix("model.") for name in unused[:5]) or "some, in the last batch"
            raise RuntimeError(
                f"the objective does not use all trained parameters ({which}), so DistributedDataParallel did not send "
                f"{len(trained) - sent} of {len(trained)} gradients: freeze what is not used, or take the groundup "
                "engine, which counts it as zeros"
            )

    def _sum(
        self,
        group: dist.ProcessGroup,
        bucket: dist.GradBucket,  # pyright: ignore[reportPrivateImportUsage]  # which DDP asks for by this very name
    ) -> torch.futures.Future[torch.Tensor]:
        """In place of DDP's average."""
        self._sent += len(bucket.parameters())
        work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
        assert work is not None
        return work.get_future().then(lambda future: future.value()[0])


def shard_parameters(root: nn.Module, model: nn.Module, mesh: Mesh, dense: DeviceMesh) -> None:
    """fully_shard each block of `model`, and `root`, which is the model or has it inside, if ranks have to sum."""
    plan, keeps = mesh.plan, mesh.plan.zero != 2
    dealt = dealt_parameters(model)
    alone = mesh.size("shard", *EXPERT) == 1
    experts = {p for name, p in model.named_parameters() if name in dealt} if alone else set()
    if mesh.size("shard", *DENSE) == 1:
        return
    if plan.expert > 1 and not alone:
        own = _mesh(mesh, next(model.parameters()).device, EXPERT, ())
        for module in model.modules():
            if hasattr(module, "expert_stacks"):
                fully_shard(module, mesh=own, reshard_after_forward=keeps)
    over = dense["replicate", "shard"]
    for module in choose_units(model, None):
        fully_shard(module, mesh=over, reshard_after_forward=keeps, ignored_params=experts)
    fully_shard(root, mesh=over, ignored_params=experts)
    for module in sharded_modules(root):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def sharded_modules(root: nn.Module) -> Iterator[FSDPModule]:
    """The modules that fully_shard gathers one after the other."""
    return (module for module in root.modules() if isinstance(module, FSDPModule))


def _mesh(mesh: Mesh, device: torch.device, copies: tuple[str, ...], inner: tuple[str, ...]) -> DeviceMesh:
    plan = mesh.plan
    shard = shard_axis(plan)
    copies = tuple(axis for axis in copies if axis != shard)
    grid = torch.arange(plan.size).view([getattr(plan, axis) for axis in AXES])
    varying = (*copies, shard, *inner)
    fixed = [axis for axis in AXES if axis not in varying]
    grid = grid.permute([AXES.index(axis) for axis in (*fixed, *varying)])
    for axis in fixed:
        grid = grid[mesh.place[axis]]
    sizes = [mesh.size(*copies), mesh.size(shard), *(mesh.size(axis) for axis in inner)]
    groups = [mesh.group(*copies), mesh.group(shard), *(mesh.group(axis) for axis in inner)]
    names = ("replicate", "shard", *inner)
    return DeviceMesh.from_group(groups, device.type, grid.reshape(sizes), mesh_dim_names=names)
