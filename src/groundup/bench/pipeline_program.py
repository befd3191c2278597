"""One rank of `bench pipeline`: schedules in turn, with stages that wait or compute; a program of `worker.py`."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from groundup.bench.ranks import join
from groundup.device import keep_memory
from groundup.parallel import Pipeline, measured_bubble
from groundup.parallel.point_to_point import post

WIDTH = 512
ROWS = {"waits": 1, "computes": 256}
"""A stage that waits shows what the schedule leaves idle, with messages that take next to no time."""


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        time.sleep(seconds)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        time.sleep(2 * ctx.seconds)
        return gradients[0], None


class Waits(nn.Module):
    """A stage that sleeps for so long forward, and twice as long backward, and needs no core meanwhile."""

    def __init__(self, seconds: float):
        super().__init__()
        self.scale, self.seconds = nn.Parameter(torch.ones(())), seconds

    def forward(self, x: Tensor) -> Tensor:
        return _Wait.apply(x * self.scale, self.seconds)  # type: ignore[return-value]


def waits(seconds: float, virtual: int) -> list[nn.Module]:
    """One rank's stages, that take so long together."""
    return [Waits(seconds / virtual) for _ in range(virtual)]


def computes(layers: int, virtual: int) -> list[nn.Module]:
    """One rank's stages, of so many layers together."""
    make = lambda: nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers // virtual)))  # noqa: E731
    return [make() for _ in range(virtual)]


def prepare(options: dict[str, Any]) -> tuple[dict[str, Any], Callable[[int], dict[str, Any]]]:
    join(options)
    keep_memory()

    def run(steps: int) -> dict[str, Any]:
        return {"measured": [measure(options, case, steps) for case in options["cases"]]}

    return {"torch": torch.__version__}, run


def measure(options: dict[str, Any], case: tuple[str, str, int, int], steps: int) -> dict[str, Any]:
    """The bubble of each step, and mean seconds: of each stage's forward and backward pass, and of a message."""
    kind, name, microbatches, virtual = case
    stages = waits(options["seconds"], virtual) if kind == "waits" else computes(options["layers"], virtual)
    pipeline = Pipeline(stages, name, microbatches)
    # The input wants a gradient, or the first stage's backward pass would be shorter than the others'.
    inputs = [torch.ones(ROWS[kind], WIDTH, requires_grad=True) for _ in range(microbatches)]
    pipeline.step(inputs, lambda y, i: y.sum())
    bubbles, seconds = [], torch.zeros(virtual, 2, dtype=torch.float64)
    for _ in range(steps):
        dist.barrier()
        pipeline.step(inputs, lambda y, i: y.sum())
        bubbles.append(measured_bubble(pipeline))
        for action, start, end in pipeline.timeline:
            seconds[action.chunk, int(action.kind == "backward")] += (end - start) / (microbatches * steps)
    parts = [torch.empty_like(seconds) for _ in range(pipeline.size)]
    dist.all_gather(parts, seconds)
    chain = torch.stack(parts, 1).flatten(0, 1)  # chunk c of rank r is stage c * ranks + r
    return {
        "bubbles": bubbles,
        "forward": chain[:, 0].tolist(),
        "backward": chain[:, 1].tolist(),
        "transfer": transfer_seconds(inputs[0].detach()),
    }


def transfer_seconds(x: Tensor, times: int = 15) -> float:
    """Of a message of this size from rank to rank: half of the median time there and back, between the first two."""
    rank, found = dist.get_rank(), []
    dist.barrier()
    for _ in range(times if rank < 2 else 0):
        begun, room = time.perf_counter(), torch.empty_like(x)
        if rank == 0:
            post([(x, 1)], [], None).wait()
        post([], [(room, 1 - rank)], None).wait()
        if rank == 1:
            post([(x, 0)], [], None).wait()
        found.append((time.perf_counter() - begun) / 2)
    return statistics.median(found) if found else 0.0
