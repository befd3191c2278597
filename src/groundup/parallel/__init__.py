"""One model on many processes: layouts are data that modules declare, applied from outside."""

from groundup.parallel import ring, tree
from groundup.parallel.agreement import check_alike, check_copies
from groundup.parallel.apply import GroundupEngine, apply_plan
from groundup.parallel.collectives import (
    copy_to_ranks,
    exchange,
    gather_from_ranks,
    scatter_sum_to_ranks,
    sum_over_ranks,
)
from groundup.parallel.context import context_batch, context_parallel, own_part, whole_sequence
from groundup.parallel.context_ring import ring_attention
from groundup.parallel.ddp import DDP, sum_gradients_flat, sum_gradients_naive
from groundup.parallel.expert import (
    all_to_all,
    dealt_parameters,
    expert_parallel,
    share_balance,
    sum_replicated_gradients,
)
from groundup.parallel.fsdp import fully_shard, gathered
from groundup.parallel.group import Place, joined
from groundup.parallel.launch import launch
from groundup.parallel.muon import orthogonalize_on_ranks
from groundup.parallel.pieces import Parts
from groundup.parallel.pipeline import Pipeline, measured_bubble
from groundup.parallel.plan import Mesh, ParallelPlan
from groundup.parallel.rank_order import sum_in_rank_order
from groundup.parallel.replicate import replicate
from groundup.parallel.schedules import Action, Timeline, bubble_fraction, schedule, simulate
from groundup.parallel.sequence import join_sequence, sequence_parallel, split_sequence
from groundup.parallel.sharded_checkpoint import load_sharded, read_whole
from groundup.parallel.sharded_saving import ShardedSaver, latest_sharded
from groundup.parallel.split import split_blocks
from groundup.parallel.tensor import Cut, cuts, full_parameters, tensor_parallel
from groundup.parallel.whole import full_state_dict, full_tensors, grad_norm, load_full
from groundup.parallel.zero import ZeRO

__all__ = [
    "DDP",
    "Action",
    "Cut",
    "GroundupEngine",
    "Mesh",
    "ParallelPlan",
    "Parts",
    "Pipeline",
    "Place",
    "ShardedSaver",
    "Timeline",
    "ZeRO",
    "all_to_all",
    "apply_plan",
    "bubble_fraction",
    "check_alike",
    "check_copies",
    "context_batch",
    "context_parallel",
    "copy_to_ranks",
    "cuts",
    "dealt_parameters",
    "exchange",
    "expert_parallel",
    "full_parameters",
    "full_state_dict",
    "full_tensors",
    "fully_shard",
    "gather_from_ranks",
    "gathered",
    "grad_norm",
    "join_sequence",
    "joined",
    "latest_sharded",
    "launch",
    "load_full",
    "load_sharded",
    "measured_bubble",
    "orthogonalize_on_ranks",
    "own_part",
    "read_whole",
    "replicate",
    "ring",
    "ring_attention",
    "scatter_sum_to_ranks",
    "schedule",
    "sequence_parallel",
    "share_balance",
    "simulate",
    "split_blocks",
    "split_sequence",
    "sum_gradients_flat",
    "sum_gradients_naive",
    "sum_in_rank_order",
    "sum_over_ranks",
    "sum_replicated_gradients",
    "tensor_parallel",
    "tree",
    "whole_sequence",
]
