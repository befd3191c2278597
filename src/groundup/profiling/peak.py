"""The memory of a training step as it was: the measured counterpart of `train.rehearsal.rehearse`."""

import math
from typing import Any

from torch import Tensor, nn
from torch.profiler import profile, record_function

from groundup.data.batch import Batch
from groundup.model.balance import update_biases
from groundup.profiling.recorder import activities, trace_of
from groundup.profiling.scopes import STEP
from groundup.profiling.timeline import Timeline, timeline
from groundup.train.feed import split
from groundup.train.rehearsal import states
from groundup.train.step import Objective, compute_gradients


def measured_timeline(
    model: nn.Module,
    objective: Objective,
    optimizer: Any,
    batch: Batch,
    *,
    micro_batches: int = 1,
    clip: float | None = 1.0,
) -> Timeline:
    """Record every allocation and free of a second training step: the first makes the optimizer's states.

    On a CPU these are the events of torch's allocator, so every byte that an operation asks it for is seen; libraries
    with allocators of their own, such as oneDNN's for its scratch, are not.
    """
    device = next(model.parameters()).device
    model.train()
    _step(model, objective, optimizer, batch, micro_batches, clip)
    with profile(activities=activities(device), profile_memory=True) as profiler, record_function(STEP):
        _step(model, objective, optimizer, batch, micro_batches, clip)
    events = trace_of(profiler)["traceEvents"]
    return timeline(events, device.type, _resident_bytes(model, optimizer, batch))


def _step(
    model: nn.Module, objective: Objective, optimizer: Any, batch: Batch, micro_batches: int, clip: float | None
) -> None:
    compute_gradients(model, objective, split(batch, micro_batches), math.inf if clip is None else clip)
    optimizer.step()
    update_biases(model)
    optimizer.zero_grad(set_to_none=True)


def _resident_bytes(model: nn.Module, optimizer: Any, batch: Batch) -> int:
    """Of storages that are there before the step."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers(), *batch.values(), *states(optimizer)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
