"""One rank of `bench parallel`: data parallelism of groundup and of torch, each in turn; a program of `worker.py`."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard as torchs_fully_shard
from torch.nn.parallel import DistributedDataParallel

from groundup import presets
from groundup.bench.ranks import join
from groundup.device import keep_memory
from groundup.model.transformer import Transformer
from groundup.parallel import DDP, fully_shard

WARMUP_STEPS = 3
TOLERANCE = 1e-4
"""By how much losses of two ways may differ after the warm-up: sums in another order."""


@dataclass
class Way:
    """A model on all ranks. `finish` is called between backward pass and update."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    finish: Callable[[], None] = lambda: None

    def step(self, tokens: Tensor) -> float:
        """One step of AdamW on this rank's rows; the loss before it."""
        logits = self.model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        self.finish()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def ours_replicated(model: Transformer) -> Way:
    ddp = DDP(model, mean=True)
    return Way(model, _adamw(model), ddp.finish)


def torchs_replicated(model: Transformer) -> Way:
    return Way(DistributedDataParallel(model, gradient_as_bucket_view=True), _adamw(model))


def ours_sharded(model: Transformer) -> Way:
    fully_shard(model, average=True)
    return Way(model, _adamw(model))


def torchs_sharded(model: Transformer) -> Way:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (*model.blocks, model):
        torchs_fully_shard(part, mesh=mesh)
    return Way(model, _adamw(model))


WAYS: dict[str, Callable[[Transformer], Way]] = {
    "our DDP": ours_replicated,
    "torch DDP": torchs_replicated,
    "our FSDP": ours_sharded,
    "torch FSDP": torchs_sharded,
}


def prepare(options: dict[str, Any]) -> tuple[dict[str, Any], Callable[[int], dict[str, Any]]]:
    join(options)
    keep_memory()
    ways = {name: make(_model(options["shape"])) for name, make in WAYS.items()}
    parameters = sum(p.numel() for p in _model(options["shape"]).parameters())

    def run(rounds: int) -> dict[str, Any]:
        return {"measured": [measure(ways, rows, seq, options, rounds) for rows, seq in options["batches"]]}

    return {"torch": torch.__version__, "parameters": parameters}, run


def measure(ways: dict[str, Way], rows: int, seq: int, options: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step, per way and round, of the slowest rank. Ways take turns, each beginning together."""
    generator = torch.Generator().manual_seed(1 + dist.get_rank())
    size = (WARMUP_STEPS, rows, seq + 1)
    batches = list(torch.randint(options["shape"]["vocab_size"], size, generator=generator))
    check_alike({name: [way.step(batch) for batch in batches] for name, way in ways.items()})
    names, seconds = list(ways), []
    for turn in range(rounds):
        for number in [*range(turn % len(names), len(names)), *range(turn % len(names))]:
            dist.barrier()
            begun = time.perf_counter()
            for step in range(options["steps"]):
                ways[names[number]].step(batches[step % len(batches)])
            seconds.append((number, (time.perf_counter() - begun) / options["steps"]))
    slowest = torch.tensor([value for _, value in seconds], dtype=torch.float64)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    found: dict[str, list[float]] = {name: [] for name in names}
    for (number, _), value in zip(seconds, slowest.tolist(), strict=True):
        found[names[number]].append(value)
    return found


def check_alike(losses: dict[str, list[float]]) -> None:
    """AssertionError where a way does not train as torch's DDP does: its speed would mean nothing."""
    expected = torch.tensor(losses["torch DDP"])
    for name, found in losses.items():
        if not torch.allclose(torch.tensor(found), expected, rtol=TOLERANCE, atol=0):
            raise AssertionError(f"{name} has losses {found} where torch's DDP has {losses['torch DDP']}")


def _model(shape: dict[str, Any]) -> Transformer:
    model = Transformer(presets.llama(**shape))
    model.init_weights(seed=0)
    return model


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
