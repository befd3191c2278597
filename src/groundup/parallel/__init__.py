"""One model on many processes: layouts are data that modules declare, applied from outside."""

from groundup.parallel.collectives import copy_to_ranks, sum_over_ranks
from groundup.parallel.fsdp import fully_shard, gathered
from groundup.parallel.muon import orthogonalize_on_ranks
from groundup.parallel.pipeline import Pipeline, measured_bubble
from groundup.parallel.schedules import Action, Timeline, bubble_fraction, schedule, simulate
from groundup.parallel.split import split_blocks
from groundup.parallel.tensor import Cut, cuts, full_parameters, tensor_parallel
from groundup.parallel.whole import full_state_dict, full_tensors, grad_norm, load_full

__all__ = [
    "Action",
    "Cut",
    "Pipeline",
    "Timeline",
    "bubble_fraction",
    "copy_to_ranks",
    "cuts",
    "full_parameters",
    "full_state_dict",
    "full_tensors",
    "fully_shard",
    "gathered",
    "grad_norm",
    "load_full",
    "measured_bubble",
    "orthogonalize_on_ranks",
    "schedule",
    "simulate",
    "split_blocks",
    "sum_over_ranks",
    "tensor_parallel",
]
