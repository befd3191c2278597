"""Optimizers, parameter groups, schedules and clipping."""

from groundup.optim.adafactor import Adafactor
from groundup.optim.adagrad import AdaGrad
from groundup.optim.adamw import AdamW
from groundup.optim.by_name import OPTIMIZERS, make_optimizer
from groundup.optim.clip import clip_by_global_norm, global_norm
from groundup.optim.composite import Optimizers
from groundup.optim.groups import groups
from groundup.optim.lion import Lion
from groundup.optim.muon import Muon, muon_adamw, orthogonalize
from groundup.optim.rmsprop import RMSProp
from groundup.optim.schedule import (
    BatchRamp,
    ClockDecay,
    InverseSqrt,
    OneCycle,
    Schedule,
    constant,
    cooldown,
    cosine,
    linear,
    warmup_stable_decay,
)
from groundup.optim.sgd import SGD
from groundup.optim.soap import SOAP

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "SOAP",
    "AdaGrad",
    "AdamW",
    "Adafactor",
    "BatchRamp",
    "ClockDecay",
    "InverseSqrt",
    "Lion",
    "Muon",
    "OneCycle",
    "Optimizers",
    "RMSProp",
    "Schedule",
    "clip_by_global_norm",
    "constant",
    "cooldown",
    "cosine",
    "global_norm",
    "groups",
    "linear",
    "make_optimizer",
    "muon_adamw",
    "orthogonalize",
    "warmup_stable_decay",
]
