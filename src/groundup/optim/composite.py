"""Several optimizers, each with its own parameters, used as one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Optimizers:
    """Steps its members in order. `param_groups` is their concatenation: the same dicts, so a rate set here
    reaches its owner."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]):
        self.optimizers = list(optimizers)
        seen: set[int] = set()
        for p in (p for group in self.param_groups for p in group["params"]):
            if id(p) in seen:
                raise ValueError(f"Optimizers: a parameter of shape {tuple(p.shape)} is in two optimizers")
            seen.add(id(p))

    @property
    def supports_skip(self) -> bool:
        return all(getattr(optimizer, "supports_skip", False) for optimizer in self.optimizers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, *, skip: Tensor | None = None) -> None:
        for optimizer in self.optimizers:
            optimizer.step() if skip is None else optimizer.step(skip=skip)  # type: ignore[call-arg]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["optimizers"]) != len(self.optimizers):
            raise ValueError(
                f"the state has {len(state['optimizers'])} optimizers, this one has {len(self.optimizers)}"
            )
        for optimizer, member in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(member)
