"""What the optimizers share: groups of a model, states, a plain path and a fast one, and steps that can be skipped."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from groundup.config import nearest
from groundup.optim.groups import groups
from groundup.optim.uncompiled import Uncompiled

CHUNK_BYTES = 64 << 20
"""Parameters that one fast update takes at a time: its temporaries are as large as they are."""

# What schedulers, the trainer and people who name their groups put beside an optimizer's own options.
_BESIDE = ("params", "name", "base_lr", "initial_lr", "param_names")

States = list[dict[str, Tensor]]
"""Of several parameters, in their order."""


class Stepping(Uncompiled):
    """An optimizer is three methods: which states a parameter has, the formula on one tensor, and the same on many.

    `reference` is the formula and visits the host where that is simpler. `fast` does the same to lists of tensors of
    one device and dtype with `torch._foreach_*` and never reads a value. `foreach=False` in a group runs the first.
    One whose fast path is a kernel names another option (`fast_option`), and may take whole lists (`chunk_bytes`) and
    skip by itself (`skipping`).

    Raises ValueError for a group with an option that the optimizer does not know, naming the nearest.
    """

    supports_skip = True
    fast_option = "foreach"
    chunk_bytes: float = CHUNK_BYTES

    def __init__(self, params: nn.Module | Iterable[Any], defaults: dict[str, Any]):
        given = groups(params, defaults["weight_decay"]) if isinstance(params, nn.Module) else params
        super().__init__(given, defaults)

    @staticmethod
    def state_shapes(p: Tensor, group: dict[str, Any]) -> dict[str, torch.Size]:
        """The states of one parameter by name: what `accounting` adds up and a checkpoint is held to."""
        raise NotImplementedError

    def reference(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        raise NotImplementedError

    def fast(self, params: list[Tensor], grads: list[Tensor], states: States, group: Any) -> None:
        raise NotImplementedError

    def new_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Zeros, in the parameter's layout where they have its shape; the step count is a float32 scalar beside it."""
        states = {}
        for name, shape in self.state_shapes(p, group).items():
            dtype = torch.float32 if name == "step" else p.dtype
            alike = shape == p.shape and dtype == p.dtype
            states[name] = torch.zeros_like(p) if alike else torch.zeros(shape, dtype=dtype, device=p.device)
        return states

    def skipping(self, params: list[Tensor], grads: list[Tensor], states: States, group: Any, skip: Tensor) -> None:
        """`fast`, and where `skip` is 1 what was there is put back."""
        changing = [*params, *(t for state in states for t in state.values())]
        before = [t.clone() for t in changing]
        self.fast(params, grads, states, group)
        put_back(changing, before, skip)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        for name in param_group.keys() - self.defaults.keys() - set(_BESIDE):
            raise ValueError(
                f"{type(self).__name__}: a group's option {name!r} is unknown{nearest(name, self.defaults)}"
            )
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # torch leaves a step count where it is, and may share it with the dict.
        for p, state in self.state.items():
            if "step" in state:
                state["step"] = torch.as_tensor(state["step"]).to(p.device, torch.float32, copy=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, skip: Tensor | None = None) -> Any:
        """Update every parameter that has a gradient.

        skip: a scalar on the parameters' device; where it is 1 nothing changes, not even the step count. The fast path
        takes the step and then puts back what was there, so the decision never visits the host.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            self._prepare(params, group)
            for chunk in chunks(params, self.chunk_bytes):
                self._step_chunk(chunk, group, skip)
        return result

    def _prepare(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """All that can fail, before anything of the group moves."""
        for p in params:
            assert p.grad is not None and not p.grad.is_sparse, f"{type(self).__name__} needs dense gradients"
            if not self.state[p]:
                self.state[p] = self.new_state(p, group)

    def _step_chunk(self, params: list[Tensor], group: dict[str, Any], skip: Tensor | None) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        states = [self.state[p] for p in params]
        if group[self.fast_option] and skip is not None:
            self.skipping(params, grads, states, group, skip)
        elif group[self.fast_option]:
            self.fast(params, grads, states, group)
        elif skip is None or not bool(skip):
            for p, grad, state in zip(params, grads, states, strict=True):
                self.reference(p, grad, state, group)


def put_back(tensors: Sequence[Tensor], before: Sequence[Tensor], skip: Tensor) -> None:
    """Where `skip` is 1 the tensors get their values of before.

    Chosen value by value and not by a factor of zero, which would keep NaN; so a step that counts has the same bits as
    one that was never in doubt.
    """
    for now, old in zip(tensors, before, strict=True):
        now.copy_(torch.where(skip > 0, old, now))


def chunks(params: Iterable[Tensor], most_bytes: float = CHUNK_BYTES) -> Iterator[list[Tensor]]:
    """Lists of one device and dtype, of at most so many bytes (or one tensor)."""
    table = defaultdict(list)
    for p in params:
        table[p.device, p.dtype].append(p)
    for alike in table.values():
        chunk: list[Tensor] = []
        size = 0
        for p in alike:
            if chunk and size + p.nbytes > most_bytes:
                yield chunk
                chunk, size = [], 0
            chunk.append(p)
            size += p.nbytes
        yield chunk


def check_options(name: str, *, at_least_0: dict[str, float], below_1: dict[str, float] | None = None) -> None:
    """Raise ValueError for an option outside of its range; NaN is outside of every range."""
    for option, value in at_least_0.items():
        if not 0.0 <= value < float("inf"):
            raise ValueError(f"{name} {option}={value}: expected a finite number, at least 0")
    for option, value in (below_1 or {}).items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name} {option}={value}: expected a number in [0, 1)")
