"""Bytes of a rank under a plan, from the ledger of one process: who keeps a part, and how many micro-batches are alive.

    parameters, gradients    4 bytes each of the layers of a stage, cut by tensor, dealt by expert and shard;
                             gradients by `data` too under ZeRO-2
    optimizer                8 bytes, and by `data` under ZeRO-1 and 2
    gathered                 under shard two units whole in the compute type, and one unit's gradients whole
    cast weights             copies in the compute type, where nothing is gathered
    activations              of a layer, x layers of the stage, x micro-batches whose backward pass is yet to come;
                             with sequence, what tensor leaves whole is cut too, but for the inputs of the branches
    logits                   of the last stage: a few chunks of the fused head and loss

The activations of a layer are not a formula: `accounting.memory` runs the layer, as one tensor-parallel rank has it, on
tensors without storage.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch

from groundup.accounting.memory import LOGIT_COPIES, MemoryLedger, training_memory
from groundup.accounting.placement import cut
from groundup.model import ModelConfig
from groundup.parallel.plan import ParallelPlan
from groundup.parallel.schedules import most_live, schedule
from groundup.planning.job import FP32_BYTES, Job, Part, parts
from groundup.planning.predict import passes

MOMENTS = 2
"""fp32 numbers that AdamW keeps for a parameter."""

LOGIT_ROWS = 512
"""Tokens of a chunk of the fused head and loss."""

WHOLE_UNITS = 2
"""Units that are gathered at a time: the one that computes and the one that comes next."""


@dataclass(frozen=True)
class RankMemory(MemoryLedger):
    """As the ledger of one process, with what is whole for a while under `shard`."""

    gathered: int = 0

    @property
    def peak(self) -> int:
        """All bytes at once."""
        return sum(vars(self).values())


def rank_memory(plan: ParallelPlan, rows: int, job: Job) -> RankMemory:
    """Of the rank that needs most, when micro-batches have `rows` rows: the first stage's or the last's."""
    stages = {0, plan.pipeline - 1}
    return max((_stage_memory(plan, rows, job, rank) for rank in stages), key=lambda memory: memory.peak)


def _stage_memory(plan: ParallelPlan, rows: int, job: Job, rank: int) -> RankMemory:
    counted = parts(job.model, plan.tensor)
    is_first, is_last = rank == 0, rank == plan.pipeline - 1
    layers = layers_of(plan, job.model.num_layers, rank)
    ends = [part for part, here in ((counted.embed, is_first), (counted.head, is_last)) if here]
    if counted.tied and is_last and not is_first:
        ends.append(counted.embed)
    whole = layers * _kept(counted.layer, plan) + sum(part.parameters for part in ends)
    own = whole / plan.shard
    work = _work(job.model, plan, job.dtype)
    casts = 0.0
    if plan.shard == 1 and job.itemsize < FP32_BYTES:
        casts = (0 if plan.recompute else layers * work.casts) + job.itemsize * is_last * _head(job.model)
    alive = _alive(plan.schedule, plan.pipeline, passes(plan, rows, job), rank, plan.chunks)
    largest = max([_kept(counted.layer, plan), *(part.parameters for part in ends)])
    return RankMemory(
        parameters=int(FP32_BYTES * own),
        gradients=int(FP32_BYTES * own / (plan.data if plan.zero == 2 else 1)),
        optimizer=int(MOMENTS * FP32_BYTES * own / (plan.data if plan.zero else 1)),
        cast_weights=int(casts),
        activations=int(rows * (alive * layers / plan.chunks * work.layer + is_last * work.ends)),
        logits=is_last * LOGIT_COPIES * FP32_BYTES * _logit_rows(plan, rows, job) * job.model.vocab_size,
        gathered=int((WHOLE_UNITS * job.itemsize + FP32_BYTES) * largest) if plan.shard > 1 else 0,
    )


def _logit_rows(plan: ParallelPlan, rows: int, job: Job) -> int:
    return min(LOGIT_ROWS, rows * job.seq // plan.context)


@cache
def _alive(name: str, ranks: int, microbatches: int, rank: int, chunks: int) -> int:
    return most_live(schedule(name, ranks, microbatches, rank, chunks)) if ranks > 1 else 1


def layers_of(plan: ParallelPlan, layers: int, rank: int) -> int:
    """How many layers this rank of the pipeline has, in all its chunks."""
    count = plan.pipeline * plan.chunks
    bounds = [layers * i // count for i in range(count + 1)]
    return sum(bounds[i + 1] - bounds[i] for i in range(rank, count, plan.pipeline))


def _kept(part: Part, plan: ParallelPlan) -> float:
    return part.parameters - part.expert * (1 - 1 / plan.expert)


def _head(model: ModelConfig) -> int:
    return model.vocab_size * model.d_model


@dataclass(frozen=True)
class _Work:
    """Bytes: of activations for one row, of a layer and of what is behind the layers; copies of a layer's weights."""

    layer: float
    ends: float
    casts: float


def _work(model: ModelConfig, plan: ParallelPlan, dtype: torch.dtype) -> _Work:
    """Of one rank. Activations are in proportion to the positions that it has."""
    own = _ledger(model, plan.tensor, dtype, plan.recompute)
    layer = own.layer / plan.context
    if plan.sequence:
        hidden = model.context_length / plan.context * model.d_model * dtype.itemsize
        inputs = 0.0 if plan.recompute else 2 * hidden * (1 - 1 / plan.tensor)
        layer = _ledger(model, 1, dtype, plan.recompute).layer / plan.context / plan.tensor + inputs
    return replace(own, layer=layer, ends=own.ends / plan.context)


@cache
def _ledger(model: ModelConfig, tensor: int, dtype: torch.dtype, recompute: bool) -> _Work:
    """From models of one and of two rounds of layers: what the second adds is a layer's, the rest is not."""
    period = len(model.blocks)
    one, two = (
        training_memory(replace(cut(model, tensor), num_layers=n), 1, model.context_length, dtype, recompute=recompute)
        for n in (period, 2 * period)
    )
    layer = (two.activations - one.activations) / period
    return _Work(layer, one.activations - period * layer, (two.cast_weights - one.cast_weights) / period)
