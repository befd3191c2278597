"""groundup's side of `bench train-step`: `groundup.train` itself, waiting for the parent between batches."""

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from groundup import presets
from groundup.accounting.flops import training_flops_per_token
from groundup.device import (
    default_device,
    environment,
    keep_memory,
    peak_memory_bytes,
    require_device,
    synchronize,
)
from groundup.kernels.quantized_linear import real
from groundup.model.transformer import Transformer
from groundup.optim import AdamW, groups
from groundup.train import objectives, precision, train


class StoppedByTrainer(RuntimeError):
    """`train` returned although the parent still wants steps."""


class Turns:
    """A source of random batches that hands out as many as `run` asks for and then waits.

    By the time that the trainer asks for the batch after the last, the steps of all earlier ones are done.
    """

    def __init__(self, shape: dict[str, int], device: torch.device):
        self._shape, self._device = shape, device
        self._wanted: queue.Queue[int] = queue.Queue()
        self._done: queue.Queue[None] = queue.Queue()
        self.training: Future[Any] | None = None

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        size = (self._shape["batch_size"], self._shape["context_length"] + 1)
        while True:
            for _ in range(self._wanted.get()):
                yield {"tokens": torch.randint(self._shape["vocab_size"], size, generator=generator)}
            synchronize(self._device)
            self._done.put(None)

    def run(self, steps: int) -> dict[str, Any]:
        self._wanted.put(steps)
        while True:
            try:
                self._done.get(timeout=1.0)
                return {"peak_bytes": peak_memory_bytes(self._device)}
            except queue.Empty:
                if self.training is not None and self.training.done():
                    raise StoppedByTrainer(f"the trainer ended early: {self.training.result()}") from None


def prepare(options: dict[str, Any]) -> tuple[dict[str, Any], Callable[[int], dict[str, Any]]]:
    shape = options["shape"]
    device = require_device(options["device"]) if options["device"] else default_device()
    if options["precision"] == "int8" and not real("int8", device.type):
        raise ValueError(f"this {device.type} has no products of bytes")
    config = presets.llama(
        vocab_size=shape["vocab_size"],
        d_model=shape["d_model"],
        num_layers=shape["num_layers"],
        num_heads=shape["num_heads"],
        d_ff=shape["d_ff"],
        context_length=shape["context_length"],
    )
    model = Transformer(config)
    model.init_weights(seed=0)
    model.to(device)
    precision.apply(model, options["precision"])
    optimizer = AdamW(groups(model, weight_decay=0.1), lr=1e-3)
    keep_memory()  # as `train` does: here before its thread begins, and has an arena of its own
    turns = Turns(shape, device)
    turns.training = ThreadPoolExecutor(1).submit(
        train, model, turns, objectives.next_token, optimizer, None, clip=1.0, compile=options["compile"]
    )
    turns.run(options["warmup_steps"])
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_per_token": training_flops_per_token(config, shape["context_length"]),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__},
        "environment": environment(),
    }
    return facts, turns.run
