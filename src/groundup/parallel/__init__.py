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
from groundup.parallel.muon import orthogonalize_on_ranks
from groundup.parallel.rank_order import sum_in_rank_order
from groundup.parallel.replicate import check_alike, replicate
from groundup.parallel.tensor import Cut, cuts, full_parameters, tensor_parallel
from groundup.parallel.zero import ZeRO

__all__ = [
    "Cut",
    "DDP",
    "ZeRO",
    "check_alike",
    "copy_to_ranks",
    "cuts",
    "exchange",
    "full_parameters",
    "gather_from_ranks",
    "orthogonalize_on_ranks",
    "replicate",
    "ring",
    "scatter_sum_to_ranks",
    "sum_gradients_flat",
    "sum_gradients_naive",
    "sum_in_rank_order",
    "sum_over_ranks",
    "tensor_parallel",
    "tree",
]
