"""The trace of a step: what is sent was begun before what it hides behind was computed.

DDP      backward  [ 3 ] sum 3 [ 2 ] sum 2 [ 1 ] sum 1 [ 0 ] sum 0 | finish: wait for all
FSDP     forward   gather 1, 2 [ run 1 ] gather 3 [ run 2 ] ...
         backward  gather 4, 3 [ back 4 ] sum 4, gather 2 [ back 3 ] wait for 4, sum 3 ...
"""

import torch
from torch import nn

from groundup.model import AttentionConfig, BlockConfig, MLPConfig, ModelConfig, Transformer
from groundup.parallel import DDP, fully_shard
from groundup.parallel import ddp as ddp_file
from groundup.parallel.flat import FlatShard
from groundup.parallel.fsdp import sharding
from tests.distributed import run_ranks

LAYERS = 4


def trace_replicated():
    """("back", layer) when its gradient is there, ("sum", layer) when its bucket leaves."""
    events = []
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(LAYERS)))
    numbers = {layer.weight: number for number, layer in enumerate(model)}
    for layer, number in zip(model, range(LAYERS), strict=True):
        layer.weight.register_hook(lambda g, n=number: events.append(("back", n)))
    real = ddp_file.sum_bucket

    def sum_bucket(params, *args):
        events.append(("sum", next(numbers[p] for p in params if p in numbers)))
        yield from real(params, *args)
        events.append(("there", next(numbers[p] for p in params if p in numbers)))

    ddp_file.sum_bucket = sum_bucket
    ddp = DDP(model, bucket_bytes=4 * (8 * 8 + 8))
    model(torch.ones(2, 8)).sum().backward()
    events.append(("finish", 0))
    ddp.finish()
    return events


def trace_sharded():
    """Of the second forward pass, when the order of units is known, and of the backward pass: unit 0 is the model's
    own, unit n its block n - 1."""
    events = []
    block = BlockConfig(AttentionConfig(2, 2, 4), MLPConfig(12))
    model = fully_shard(Transformer(ModelConfig(19, 8, LAYERS, (block,))))
    flats = sharding(model).flats
    assert len(flats) == 1 + LAYERS
    for number, each in enumerate(model.blocks, 1):
        each.mixer.register_forward_pre_hook(lambda *_, n=number: events.append(("run", n)))
        each.mixer.register_full_backward_hook(lambda *_, n=number: events.append(("back", n)))

    def noted(name, word, begins):
        real = getattr(FlatShard, name)

        def call(flat, *args):
            if begins(flat):
                events.append((word, flats.index(flat)))
            return real(flat, *args)

        setattr(FlatShard, name, call)

    noted("launch", "gather", lambda flat: not flat.is_whole)
    noted("reduce", "sum", lambda flat: True)
    noted("settle", "wait", lambda flat: flat._reducing is not None)
    tokens = torch.arange(12)[None] % 19
    model(tokens).sum().backward()
    events.clear()
    loss = model(tokens).sum()
    forward = list(events)
    events.clear()
    loss.backward()
    return forward, events


def traces(rank, size):
    return trace_replicated(), trace_sharded()


def test_messages_travel_while_layers_compute():
    for replicated, (forward, backward) in run_ranks(traces, 2):
        last = LAYERS - 1
        assert replicated[:3] == [("back", last), ("sum", last), ("back", last - 1)]
        for layer in range(1, LAYERS):
            assert replicated.index(("sum", layer)) < replicated.index(("back", layer - 1))
        assert replicated.index(("sum", 0)) < replicated.index(("finish", 0)) < replicated.index(("there", 0))

        for unit in range(1, LAYERS):
            assert forward.index(("gather", unit + 1)) < forward.index(("run", unit))
            assert backward.index(("gather", unit)) < backward.index(("back", unit + 1))
            assert (
                backward.index(("sum", unit + 1)) < backward.index(("back", unit)) < backward.index(("wait", unit + 1))
            )
        assert forward.index(("gather", LAYERS)) > forward.index(("run", 1)), "no more than two units ahead"
