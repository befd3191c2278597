"""One model on many processes: layouts are data that modules declare, applied from outside."""

from groundup.parallel import ring, tree
from groundup.parallel.collectives import (
    copy_to_ranks,
    exchange,
    gather_from_ranks,
    scatter_sum_to_ranks,
    sum_over_ranks,
)
from groundup.parallel.ddp import DDP, sum_gradients_flat, sum_gradients_naive
from groundup.parallel.fsdp import fully_shard, gathered
from groundup.parallel.group import Place, joined
from groundup.parallel.launch import launch
from groundup.parallel.muon import orthogonalize_on_ranks
from groundup.parallel.pipeline import Pipeline, measured_bubble
from groundup.parallel.rank_order import sum_in_rank_order
from groundup.parallel.replicate import check_alike, replicate
from groundup.parallel.schedules import Action, Timeline, bubble_fraction, schedule, simulate
from groundup.parallel.split import split_blocks
from groundup.parallel.tensor import Cut, cuts, full_parameters, tensor_parallel
from groundup.parallel.whole import full_state_dict, full_tensors, grad_norm, load_full
from groundup.parallel.zero import ZeRO

__all__ = [
    "DDP",
    "Action",
    "Cut",
    "Cut",
    "Pipeline",
    "Place",
    "Timeline",
    "ZeRO",
    "bubble_fraction",
    "check_alike",
    "copy_to_ranks",
    "cuts",
    "exchange",
    "full_parameters",
    "full_state_dict",
    "full_tensors",
    "fully_shard",
    "gather_from_ranks",
    "gathered",
    "grad_norm",
    "joined",
    "launch",
    "load_full",
    "measured_bubble",
    "orthogonalize_on_ranks",
    "orthogonalize_on_ranks",
    "replicate",
    "ring",
    "scatter_sum_to_ranks",
    "schedule",
    "simulate",
    "split_blocks",
    "sum_gradients_flat",
    "sum_gradients_naive",
    "sum_in_rank_order",
    "sum_over_ranks",
    "tensor_parallel",
    "tree",
]
