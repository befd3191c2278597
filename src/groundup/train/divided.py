"""A run whose model ranks divide by a plan: checkpoints of whole tensors, which any other plan can go on with.

    rank 0   w, first half    m, first half                         model.w   optimizer.exp_avg.w   as on one process
    rank 1   w, second half   m, second half    gathered on all ->  written by the first rank
                                                <- read by all, of which each takes its part

Everything here is a collective, so all ranks come here alike, also those that write nothing.
"""

from typing import Any

import torch
from torch import Tensor

from groundup.parallel import check_copies
from groundup.parallel.apply import GroundupEngine
from groundup.parallel.sharded_state import own_states
from groundup.parallel.zero import ZeRO
from groundup.train import snapshot


def capture(engine: GroundupEngine) -> dict[str, Tensor]:
    """The tensors that `snapshot.capture` has on one process, on every rank; generators are this rank's."""
    tensors = {f"model.{name}": tensor for name, tensor in engine.full_state_dict().items()}
    for name, states in engine.optimizer_state().items():
        tensors |= {f"optimizer.{key}.{name}": value for key, value in states.items()}
    return tensors | snapshot.generators()


def restore(tensors: dict[str, Tensor], engine: GroundupEngine, where: str = "checkpoint") -> None:
    """Take this rank's part of what `capture`, or a single process, left behind.

    Raises ValueError for tensors that do not fit the model, or are not finite.
    """
    broken = [name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if broken := [name for name in broken if name.startswith(("model.", "optimizer."))]:
        raise ValueError(f"{where}: {', '.join(broken[:10])} hold NaN or infinity")
    state: dict[str, dict[str, Tensor]] = {}
    for full in (name for name in tensors if name.startswith("optimizer.")):
        _, key, name = full.split(".", 2)
        state.setdefault(name, {})[key] = tensors[full]
    engine.load_full({name[len("model.") :]: t for name, t in tensors.items() if name.startswith("model.")})
    engine.load_optimizer_state(state)
    snapshot.restore_generators(tensors)


def check_replicas(engine: GroundupEngine) -> None:
    """RuntimeError where ranks that were given the same sums have other bits in weights or optimizer state.

    Those are ranks along `data` and `context`, and along `expert` for what is no expert's. What `tensor` copies each
    rank computes by itself, which on a GPU need not give the same last bit; with zero each owns another state.
    """
    slices = engine.slices
    states = {} if isinstance(engine.optimizer, ZeRO) else own_states(engine.optimizer)
    whole: dict[str, Tensor] = {}
    parts: dict[str, Tensor] = {}
    for name, p in slices.own.items():
        table = parts if "expert" in slices.divided(name) else whole
        table[name] = p
        table |= {f"{key} of {name}": value for key, value in sorted(states.get(p, {}).items())}
    check_copies(whole, engine.mesh.group("data", "expert", "context"))
    check_copies(parts, engine.mesh.group("data", "context"))


def vocabularies(engine: GroundupEngine) -> dict[str, int]:
    """How many ids there are for the tokens of a batch, as `objectives.vocabularies`; here tables may be cut."""
    shapes = engine.slices.names.shapes
    table = shapes.get("head.weight", shapes.get("embed.weight"))
    return {} if table is None else {"tokens": table[0]}


def described(optimizer: Any) -> Any:
    """The optimizer that a checkpoint is held to: the same with ZeRO around it and without."""
    return optimizer.optimizer if isinstance(optimizer, ZeRO) else optimizer


def refuse(engine: GroundupEngine, model: Any, optimizer: Any, micro_batches: Any, recorder: Any) -> None:
    """Raise ValueError for options of `train` that a divided model cannot have."""
    if engine.optimizer is None or optimizer is not engine.optimizer or model is not engine.modules[0]:
        raise ValueError("train: with an engine, model and optimizer are engine.modules[0] and engine.optimizer")
    if engine.plan.pipeline > 1:
        raise ValueError("train: objectives call a whole model, which no stage of a pipeline is; use engine.accumulate")
    if not isinstance(micro_batches, int):
        raise ValueError(f"train: micro_batches={micro_batches!r} with an engine; give a number")
    if recorder not in (True, False) and not has_whole_gradients(engine):
        raise ValueError(
            "train: a recorder needs whole gradients on each rank, as plans of data and context leave them"
        )


def has_whole_gradients(engine: GroundupEngine) -> bool:
    """Whether every rank has the gradients of all parameters, so that norms by layer can be read there."""
    plan = engine.plan
    return plan.shard * plan.tensor * plan.expert * plan.pipeline == 1 and plan.zero == 0
