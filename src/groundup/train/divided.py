"""A run whose model ranks divide by a plan: checkpoints of whole tensors, which any other plan can go on with.

    rank 0   w, first half    m, first half                         model.w   optimizer.exp_avg.w   as on one process
    rank 1   w, second half   m, second half    gathered on all ->  written by the first rank
                                                <- read by all, of which each takes its part

Everything here is a collective, so all ranks come here alike, also those that write nothing.
"""

from typing import Any

import torch
from torch import Tensor

from groundup.model.encoder_decoder import EncoderDecoder
from groundup.parallel import check_copies
from groundup.parallel.engine import Engine
from groundup.parallel.plan import TOKENS
from groundup.parallel.sharded_state import own_states
from groundup.train import snapshot


def capture(engine: Engine) -> dict[str, Tensor]:
    """The tensors that `snapshot.capture` has on one process, on every rank; generators are this rank's."""
    tensors = {f"model.{name}": tensor for name, tensor in engine.full_state_dict().items()}
    for name, states in engine.optimizer_state().items():
        tensors |= {f"optimizer.{key}.{name}": value for key, value in states.items()}
    return tensors | snapshot.generators()


def restore(tensors: dict[str, Tensor], engine: Engine, where: str = "checkpoint") -> None:
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


def check_replicas(engine: Engine) -> None:
    """RuntimeError where ranks that were given the same sums have other bits in weights or optimizer state.

    Those are ranks along `data` and `context`, and along `expert` for what is no expert's. What `tensor` copies each
    rank computes by itself, which on a GPU need not give the same last bit; with zero each owns another state.
    """
    states = {} if engine.plan.zero else own_states(engine.inner())
    copies: dict[tuple[str, ...], dict[str, Tensor]] = {}
    for name, p in engine.named_parameters():
        axes = tuple(axis for axis in TOKENS if axis not in engine.cut_axes(name) | {"shard"})
        table = copies.setdefault(axes, {})
        table[name] = p
        table |= {f"{key} of {name}": value for key, value in sorted(states.get(p, {}).items())}
    for axes, table in copies.items():
        check_copies(table, engine.mesh.group(*axes))


def vocabularies(engine: Engine) -> dict[str, int]:
    """How many ids there are for the tokens of a batch, as `objectives.vocabularies`; here tables may be cut."""
    shapes = engine.shapes
    table = shapes.get("head.weight", shapes.get("embed.weight"))
    return {} if table is None else {"tokens": table[0]}


def refuse(engine: Engine, model: Any, optimizer: Any, micro_batches: Any, recorder: Any) -> None:
    """Raise ValueError for options of `train` that a divided model cannot have."""
    if engine.optimizer is None or optimizer is not engine.optimizer or model is not engine.modules[0]:
        raise ValueError("train: with an engine, model and optimizer are engine.modules[0] and engine.optimizer")
    if engine.plan.pipeline > 1:
        raise ValueError("train: objectives call a whole model, which no stage of a pipeline is; use engine.accumulate")
    if (head := _name_of_head(model)) is not None and "tensor" in engine.cut_axes(head):
        raise ValueError(f"train: the model's own table cuts {head} over tensor, but objectives read the head whole")
    if isinstance(model, EncoderDecoder) and not _is_whole_anywhere(engine):
        raise ValueError(
            f"train: an EncoderDecoder reads parts of blocks without calling the blocks, and {engine.plan.text} leaves "
            "them whole within a call only; use data, or zero=1"
        )
    if not isinstance(micro_batches, int):
        raise ValueError(f"train: micro_batches={micro_batches!r} with an engine; give a number")
    if recorder not in (True, False) and not has_whole_gradients(engine):
        raise ValueError(
            "train: a recorder needs whole gradients on each rank, as plans of data and context leave them"
        )


def _name_of_head(model: Any) -> str | None:
    head = getattr(model, "head_weight", None)
    return next((name for name, p in model.named_parameters() if p is head), None)


def _is_whole_anywhere(engine: Engine) -> bool:
    """Whether modules hold the very tensors that this rank computes with, and not pieces that have to be gathered."""
    own = dict(engine.named_parameters())
    return engine.plan.shard == 1 and all(own[name] is p for name, p in engine.modules[0].named_parameters())


def has_whole_gradients(engine: Engine) -> bool:
    """Whether every rank has the gradients of all parameters, so that norms by layer can be read there."""
    plan = engine.plan
    return plan.shard * plan.tensor * plan.expert * plan.pipeline == 1 and plan.zero == 0
