"""One model on many processes: layouts are data that modules declare, applied from outside."""

from groundup.parallel.collectives import copy_to_ranks, sum_over_ranks
from groundup.parallel.context import context_batch, context_parallel, own_part, whole_sequence
from groundup.parallel.expert import (
    all_to_all,
    dealt_parameters,
    expert_parallel,
    share_balance,
    sum_replicated_gradients,
)
from groundup.parallel.muon import orthogonalize_on_ranks
from groundup.parallel.ring import ring_attention
from groundup.parallel.tensor import Cut, cuts, full_parameters, tensor_parallel

__all__ = [
    "Cut",
    "all_to_all",
    "context_batch",
    "context_parallel",
    "copy_to_ranks",
    "cuts",
    "dealt_parameters",
    "expert_parallel",
    "full_parameters",
    "orthogonalize_on_ranks",
    "own_part",
    "ring_attention",
    "share_balance",
    "sum_over_ranks",
    "sum_replicated_gradients",
    "tensor_parallel",
    "whole_sequence",
]
