"""A small model and made-up hardware, whose figures are easy on paper."""

import math

import torch

from groundup import presets
from groundup.planning.hardware import Hardware, Speed
from groundup.planning.job import Job
from groundup.planning.links import Link, Network

MODEL = presets.llama(vocab_size=512, d_model=64, num_layers=8, num_heads=4, num_kv_heads=4, d_head=16,
                      context_length=128)  # fmt: skip
EXPERTS = presets.published("olmoe-1b-7b")


def job(rows: int = 16, model=MODEL, dtype=torch.float32) -> Job:
    return Job(model, rows, dtype)


INSIDE, BETWEEN = Link(1e-4, 1e9), Link(1e-3, 1e8)


def hardware(
    flops=1e9, inside=INSIDE, between=BETWEEN, per_machine=4, *, overlaps=True, bandwidth=math.inf,
    memory=1e9, **speed,
) -> Hardware:  # fmt: skip
    network = Network(inside, per_machine, between)
    return Hardware("made up", Speed(flops, **speed), memory, bandwidth, network, overlaps)


FREE = Link(0.0, math.inf)
"""A link over which messages take no time."""
