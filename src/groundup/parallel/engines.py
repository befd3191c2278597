"""Which engine runs a plan: torch's own, or the one of this room that is written to be read."""

import importlib

from torch import nn

from groundup.config import nearest
from groundup.parallel import apply
from groundup.parallel.engine import Engine
from groundup.parallel.plan import ParallelPlan

ENGINES = ("torch", "groundup")


def engine_for(model: nn.Module, plan: ParallelPlan, engine: str = "torch") -> Engine:
    """Put `model` on the ranks of the plan: a collective. See `torch_engine.apply_plan` and `apply.apply_plan`.

    "torch" runs DDP, fully_shard, DTensor and torch's pipelining; "groundup" what this room builds itself. Both take
    the same plans, and weights and optimizer states go from one to the other.

    Raises ValueError for an unknown engine, and for what the engine cannot do with this plan or model.
    """
    match engine:
        case "torch":
            # With it come DTensor, pipelining and the compiler, which take longer to import than torch.
            return importlib.import_module("groundup.parallel.torch_engine").apply_plan(model, plan)
        case "groundup":
            return apply.apply_plan(model, plan)
    raise ValueError(f"engine {engine!r} is unknown{nearest(engine, ENGINES)}")
