"""One model on many processes: layouts are data that modules declare, applied from outside."""

from groundup.parallel.collectives import copy_to_ranks, sum_over_ranks
from groundup.parallel.fsdp import fully_shard, gathered
from groundup.parallel.muon import orthogonalize_on_ranks
from groundup.parallel.tensor import Cut, cuts, full_parameters, tensor_parallel
from groundup.parallel.whole import full_state_dict, full_tensors, grad_norm, load_full

__all__ = [
    "Cut",
    "copy_to_ranks",
    "cuts",
    "full_parameters",
    "full_state_dict",
    "full_tensors",
    "fully_shard",
    "gathered",
    "grad_norm",
    "load_full",
    "orthogonalize_on_ranks",
    "sum_over_ranks",
    "tensor_parallel",
]
