"""Resource accounting: parameters, FLOPs, bytes, and what this machine can do with them."""

from groundup.accounting.flops import (
    beside_six_nd,
    forward_flops,
    ledger,
    optimizer_ledger,
    training_flops_per_token,
    training_ledger,
)
from groundup.accounting.hardware import Machine, describe_machine, probe
from groundup.accounting.memory import (
    CacheBytes,
    MemoryLedger,
    activation_bytes,
    cache_bytes,
    kv_cache_bytes_per_token,
    least_recompute,
    training_memory,
)
from groundup.accounting.napkin import largest_model, training_days
from groundup.accounting.optimizers import OptimizerName, state_bytes, update_rows
from groundup.accounting.params import ParameterCount, count_parameters
from groundup.accounting.roofline import Ceiling, Work, attention_intensity, ceiling, decode_intensity, step_work
from groundup.accounting.summary import summary

__all__ = [
    "CacheBytes",
    "Ceiling",
    "Machine",
    "MemoryLedger",
    "OptimizerName",
    "ParameterCount",
    "Work",
    "activation_bytes",
    "attention_intensity",
    "beside_six_nd",
    "cache_bytes",
    "ceiling",
    "count_parameters",
    "decode_intensity",
    "describe_machine",
    "forward_flops",
    "kv_cache_bytes_per_token",
    "largest_model",
    "least_recompute",
    "ledger",
    "optimizer_ledger",
    "probe",
    "state_bytes",
    "step_work",
    "summary",
    "training_days",
    "training_flops_per_token",
    "training_ledger",
    "training_memory",
    "update_rows",
]
