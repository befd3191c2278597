"""One gradient: micro-batches forward and backward, summed over ranks, divided by the weight, clipped."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from groundup.data.batch import Batch
from groundup.model.balance import count_micro_batch, start_step, step_loads
from groundup.optim.clip import clip_by_global_norm, global_norm
from groundup.parallel.engine import Engine
from groundup.parallel.plan import TOKENS
from groundup.train.objectives import Loss
from groundup.train.ranks import sum_over_ranks, world_size
from groundup.train.scaler import LossScaler

Objective = Callable[[nn.Module, Batch], Loss]
OVERFLOW = "overflow"  # the last value of a step with a loss scaler, 0 or 1


@dataclass(frozen=True)
class StepValues:
    """What a step tells the host. `small_*`: squared gradient norm and weight of one micro-batch. `overflow`: the
    gradient left fp16's range, which the loss scaler answers and not the guard."""

    loss: float
    grad_norm: float
    weight: float
    small_square: float
    small_weight: float
    metrics: dict[str, float]
    overflow: bool = False

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class PendingValues:
    """StepValues on their way to the host: `read` waits for this step only, not for what was queued since."""

    def __init__(self, vector: Tensor, names: list[str]):
        self._names = names
        self._event: torch.cuda.Event | None = None
        if vector.device.type == "cuda":
            self._host = torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)
            self._host.copy_(vector, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = vector

    def read(self) -> StepValues:
        if self._event is not None:
            self._event.synchronize()
        loss, norm, weight, square, small, *metrics = self._host.tolist()
        named = dict(zip(self._names, metrics, strict=True))
        overflow = named.pop(OVERFLOW, 0.0) > 0
        return StepValues(loss, norm, weight, square, small, named, overflow)


def compute_gradients(
    model: nn.Module,
    objective: Objective,
    micro: list[Batch],
    max_norm: float,
    scaler: LossScaler | None = None,
    engine: Engine | None = None,
    alone: AbstractContextManager[None] | None = None,
) -> tuple[Tensor, list[str]]:
    """Leave the clipped mean gradient in `.grad`; return (a vector of values on the device, metric names).

    Losses are sums, so each micro-batch's backward just adds to `.grad`, and one division by the total weight
    follows: any split gives the same gradient, and a micro-batch of weight zero adds zero. Nothing here waits
    for the device. A batch without any weight gives NaN, which the guard sees.

    scaler: its scale multiplies the losses before the backward pass and divides gradients together with the weight;
    the vector then ends with the scale and whether there was an overflow.

    engine: of a model that ranks divide by a plan. It then cuts batches, sums and clips; the micro-batch's own norm is
    not known, since gradients are summed while they are made.

    alone: entered while this rank computes and waits for no other.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    start_step(model)
    with alone or nullcontext():
        sums, names, small_square, small_weight = _backward(model, objective, micro, params, scaler, engine)
    parts = world_size() if engine is None else engine.mesh.size(*TOKENS)
    several = len(micro) * parts > 1
    sums = torch.stack([*sums, small_square if several and engine is None else sums[0].new_zeros(()), small_weight])
    if engine is not None:
        engine.finish()
        sums = engine.over_ranks(sums)
        for load in step_loads(model):
            load.copy_(engine.over_ranks(load))
    elif world_size() > 1:
        for p in params:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        sum_over_ranks([sums, *step_loads(model), *(p.grad for p in params if p.grad is not None)])
    total, weight, *metrics, square, small = sums.unbind()
    divisor = weight if scaler is None else weight * scaler.scale
    if engine is None:
        norm = clip_by_global_norm(params, max_norm, divisor=divisor)
    else:
        norm = engine.clip(max_norm, divisor=divisor)
    values = [total / weight, norm, weight, square / parts, small / parts]
    values += [m / weight for m in metrics]
    if scaler is not None:
        values += [scaler.scale, scaler.overflowed(values[0], norm)]
        names = [*names, "loss_scale", OVERFLOW]
    return torch.stack([v.to(sums.dtype) for v in values]), names


def _backward(
    model: nn.Module,
    objective: Objective,
    micro: list[Batch],
    params: list[nn.Parameter],
    scaler: LossScaler | None,
    engine: Engine | None,
) -> tuple[list[Tensor], list[str], Tensor, Tensor]:
    """([total, weight, *metrics] summed, metric names, the first micro-batch's |g|^2 and weight)."""
    sums: list[Tensor] = []
    names: list[str] = []
    small_square = small_weight = torch.zeros(())
    for number, batch in enumerate(micro):
        loss = _one_pass(model, objective, batch, scaler, engine, last=number + 1 == len(micro))
        names = list(loss.metrics)
        parts = [loss.total, loss.weight, *(loss.metrics[name] for name in names)]
        parts = [part.detach().to(loss.total.dtype) for part in parts]
        sums = [a + b for a, b in zip(sums, parts, strict=True)] if number else parts
        if number == 0:
            small_weight = parts[1] if engine is None else torch.zeros_like(parts[1])
            if len(micro) * world_size() > 1 and engine is None:
                # Sums of losses have gradients of weight x mean, so the norm is brought to a mean's here.
                grads = [p.grad for p in params if p.grad is not None]
                divisor = small_weight if scaler is None else small_weight * scaler.scale
                small_square = (global_norm(grads) / divisor).square().nan_to_num(0.0).to(parts[0].dtype)
    return sums, names, small_square, small_weight


def _one_pass(
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    scaler: LossScaler | None,
    engine: Engine | None,
    *,
    last: bool,
) -> Loss:
    """Forward and backward of one micro-batch."""
    found: list[Loss] = []

    def scaled(model: nn.Module, batch: Batch) -> Tensor:
        loss = objective(model, batch)
        count_micro_batch(model)
        found.append(loss)
        return loss.total if scaler is None else loss.total * scaler.scale.to(loss.total.dtype)

    if engine is None:
        scaled(model, batch).backward()
    else:
        engine.backward(scaled, batch, last=last)
    return found[0]
