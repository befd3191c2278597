"""One model on many processes: layouts are data that modules declare, applied from outside."""

from groundup.parallel.collectives import copy_to_ranks, sum_over_ranks
from groundup.parallel.group import Place, joined
from groundup.parallel.launch import launch
from groundup.parallel.muon import orthogonalize_on_ranks
from groundup.parallel.tensor import Cut, cuts, full_parameters, tensor_parallel

__all__ = [
    "Cut",
    "Place",
    "copy_to_ranks",
    "cuts",
    "full_parameters",
    "joined",
    "launch",
    "orthogonalize_on_ranks",
    "sum_over_ranks",
    "tensor_parallel",
]
