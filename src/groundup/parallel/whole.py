"""Whole tensors of a model that `fully_shard` cut: reading them, taking them in, and the norm over all of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from groundup.config import nearest
from groundup.parallel.fsdp import sharding


def full_tensors(
    model: nn.Module, value: Callable[[nn.Parameter], Tensor] = lambda p: p
) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor) of every parameter: a collective, which every rank has to run through to its end.

    `value` picks what to gather, such as the gradient or an optimizer's state. One unit at a time is in memory.
    """
    for flat in sharding(model).flats:
        yield from flat.gathered(value).items()


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """What `state_dict` was before the model was cut, on every rank: a collective."""
    whole = dict(full_tensors(model))
    first_names = {id(p): name for name, p in model.named_parameters()}
    return {name: whole[first_names[id(t)]] if id(t) in first_names else t.detach().clone()
            for name, t in model.state_dict(keep_vars=True).items()}  # fmt: skip


@torch.no_grad()
def load_full(model: nn.Module, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
    """Take this rank's piece of each whole tensor, given by name; an iterator need not hold them all at once.

    Raises ValueError for an unknown name or another shape, and for parameters that are missing in the end.
    """
    slots = {slot.name: (flat, slot) for flat in sharding(model).flats for slot in flat.slots}
    named = {name: slots[first] for name, first in _first_names(model) if first in slots}
    buffers, missing = dict(model.named_buffers()), set(slots)
    for name, tensor in cast(
        Iterable[tuple[str, Tensor]], tensors.items() if isinstance(tensors, Mapping) else tensors
    ):
        if name in buffers:
            buffers[name].copy_(tensor)
            continue
        if name not in named:
            raise ValueError(f"load_full: the model has no parameter {name!r}{nearest(name, named)}")
        flat, slot = named[name]
        if tensor.shape != slot.shape:
            raise ValueError(f"load_full: {name} has shape {tuple(tensor.shape)}; expected {tuple(slot.shape)}")
        flat.fill(slot, tensor)
        missing.discard(slot.name)
    if missing:
        raise ValueError(f"load_full: nothing was given for {', '.join(sorted(missing))}")


def grad_norm(model: nn.Module) -> Tensor:
    """The Euclidean norm of the whole gradient, the same on every rank: a collective."""
    state = sharding(model)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    device = state.flats[0].shard.device
    square = torch.stack([g.square().sum() for g in grads]).sum() if grads else torch.zeros((), device=device)
    parts = [torch.empty_like(square) for _ in range(dist.get_world_size(state.wire.group))]
    dist.all_gather(parts, square, group=state.wire.group)
    return torch.stack(parts).sum().sqrt()


def _first_names(model: nn.Module) -> Iterator[tuple[str, str]]:
    """(name, the name that comes first among those of the same parameter)."""
    firsts = {id(p): name for name, p in model.named_parameters()}
    for name, p in model.named_parameters(remove_duplicate=False):
        yield name, firsts[id(p)]
