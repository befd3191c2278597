"""Optimizer state that lies on the ranks that own it, made whole by name, and taken apart again.

rank 0  {w1: moments}                                      {w1: moments, w2: moments, w3: moments}
rank 1  {w2: moments, w3: moments}    gather ->  <- load   by name, whatever the number of ranks
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from groundup.parallel.agreement import texts_of_ranks

Names = Mapping[nn.Parameter, str]
Owners = Mapping[nn.Parameter, int]


def members(optimizer: Any) -> list[Any]:
    """The optimizers that one is made of (`optim.Optimizers`), or itself."""
    return list(getattr(optimizer, "optimizers", [optimizer]))


def named_groups(optimizer: Any, names: Names) -> list[list[str]]:
    """The names of each group's parameters."""
    return [[names[p] for p in group["params"]] for group in optimizer.param_groups]


def gather_state(
    optimizer: Any, owners: Owners, names: Names, group: dist.ProcessGroup | None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(name, states by key) of every parameter with any, on every rank, each sent by its owner when its turn comes."""
    rank, own = dist.get_rank(group), own_states(optimizer)
    described = {names[p]: {k: [list(t.shape), _name(t.dtype)] for k, t in states.items()} for p, states in own.items()}
    device = next((p.device for p in owners), torch.device("cpu"))
    shapes = {}
    for text in texts_of_ranks(json.dumps(described), device, group):
        shapes |= json.loads(text)
    for p, owner in owners.items():
        states = {}
        for key, (shape, dtype) in shapes.get(names[p], {}).items():
            if owner == rank:
                value = own[p][key].detach().to(device).clone(memory_format=torch.contiguous_format)
            else:
                value = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
            dist.broadcast(value, group=group, group_src=owner)
            states[key] = value
        if states:
            yield names[p], states


def load_state(
    optimizer: Any,
    state: Mapping[str, Mapping[str, Tensor]],
    owners: Owners,
    names: Names,
    rank: int,
    groups: list[dict[str, Any]],
    own_groups: list[list[str]],
) -> None:
    """Give the optimizer the states of what this rank owns. Everything is checked before anything is changed."""
    known = {names[p] for p in owners}
    if unknown := sorted(state.keys() - known):
        raise ValueError(f"optimizer state of parameters that are not trained here: {', '.join(unknown[:10])}")
    if [group["params"] for group in groups] != own_groups:
        raise ValueError(f"the state's groups {[g['params'] for g in groups]} are not this optimizer's {own_groups}")
    mine = []
    for member in members(optimizer):
        for group in member.param_groups:
            for p in group["params"]:
                if owners.get(p) == rank and names[p] in state:
                    _check_shapes(member, p, group, names[p], state[names[p]])
                    mine.append((member, p, group, state[names[p]]))
    for member in members(optimizer):
        member.state.clear()
    for member, p, group, states in mine:
        member.state[p] = {key: place_state(member, p, group, key, value) for key, value in states.items()}


def load_groups(optimizer: Any, groups: list[dict[str, Any]]) -> None:
    """Set the groups' options: rates, betas and the like."""
    for group, given in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: value for key, value in given.items() if key != "params"})


def own_states(optimizer: Any) -> dict[nn.Parameter, dict[str, Tensor]]:
    """The states of each parameter that has any, by name."""
    return {
        p: {key: torch.as_tensor(value) for key, value in states.items() if value is not None}
        for member in members(optimizer)
        for p, states in member.state.items()
    }


def _check_shapes(member: Any, p: Tensor, group: dict[str, Any], name: str, states: Mapping[str, Tensor]) -> None:
    expected = member.state_shapes(p, group) if hasattr(member, "state_shapes") else {}
    for key, value in states.items():
        if value.shape != expected.get(key, value.shape):
            raise ValueError(f"{key} of {name} has shape {tuple(value.shape)}, not {tuple(expected[key])}")


def place_state(member: Any, p: Tensor, group: dict[str, Any], key: str, value: Tensor) -> Tensor:
    """A copy of a state, where the optimizer expects it."""
    return value.to(state_device(member, p, group, key), copy=True)


def state_device(member: Any, p: Tensor, group: dict[str, Any], key: str) -> torch.device:
    """Where an optimizer keeps a state of p."""
    # torch's own optimizers keep an unfused step count on the host; ours can skip a step on the device.
    ours = getattr(member, "supports_skip", False)
    on_host = key == "step" and not (ours or group.get("fused") or group.get("capturable"))
    return torch.device("cpu") if on_host else p.device


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
