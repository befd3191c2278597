"""Optimizers, parameter groups, schedules and clipping."""

from groundup.optim.adamw import AdamW
from groundup.optim.clip import clip_by_global_norm, global_norm
from groundup.optim.composite import Optimizers
from groundup.optim.groups import groups
from groundup.optim.muon import Muon, muon_adamw, orthogonalize
from groundup.optim.schedule import ClockDecay, Schedule, constant, cosine, linear, warmup_stable_decay

__all__ = [
    "AdamW",
    "ClockDecay",
    "Muon",
    "Optimizers",
    "Schedule",
    "clip_by_global_norm",
    "constant",
    "cosine",
    "global_norm",
    "groups",
    "linear",
    "muon_adamw",
    "orthogonalize",
    "warmup_stable_decay",
]
