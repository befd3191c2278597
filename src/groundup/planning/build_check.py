"""Does a plan for a thousand ranks build? One of its ranks does so here, among others that are not there.

torch's fake process group answers every collective at once with what the rank itself gave, and the meta device has
shapes without numbers; so tensor parallelism, the split into stages and full sharding run as they would, for any model,
and what the rank then holds can be counted. Nothing is gathered: the largest that is made are this rank's pieces.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from groundup.accounting.params import meta_model
from groundup.model import ModelConfig
from groundup.parallel import expert_parallel, fully_shard, sequence_parallel, split_blocks, tensor_parallel
from groundup.parallel.plan import ParallelPlan


@dataclass(frozen=True)
class Built:
    """rank: of the plan's. parameters: those that it holds, padding included; tensors: in how many pieces."""

    rank: int
    parameters: int
    tensors: int


def build(plan: ParallelPlan, config: ModelConfig, rank: int = 0) -> Built:
    """Build the part of this rank, as our own strategies cut it: pipeline, expert, tensor, shard.

    ValueError where the model cannot be divided so, RuntimeError inside of a process group.
    """
    with _fake_ranks(rank, plan.size):
        model = meta_model(config)
        place = plan.coordinates(rank)
        if plan.chunks > 1:
            raise ValueError("plan: a rank of an interleaved pipeline has several stages; check it with chunks=1")
        if plan.pipeline > 1:
            model = split_blocks(model, plan.pipeline)[place["pipeline"]]
        if plan.expert > 1:
            expert_parallel(model, _group(plan, "expert", rank))
        if plan.tensor > 1:
            (sequence_parallel if plan.sequence else tensor_parallel)(model, _group(plan, "tensor", rank))
        if plan.shard > 1:
            fully_shard(model, group=_group(plan, "shard", rank), device="cpu")
        held = [p.numel() for p in model.parameters()]
        return Built(rank, sum(held), len(held))


def _group(plan: ParallelPlan, axis: str, rank: int) -> dist.ProcessGroup:
    ranks = next(ranks for ranks in plan.groups([axis]) if rank in ranks)
    return dist.new_group(ranks)  # type: ignore[return-value]


@contextmanager
def _fake_ranks(rank: int, size: int) -> Iterator[None]:
    if dist.is_initialized():
        raise RuntimeError("build check: this process is in a process group already; run it in one of its own")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        with torch.no_grad():
            yield
    finally:
        dist.destroy_process_group()
