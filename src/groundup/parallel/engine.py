"""What both engines give for a plan: one training step, the weights by name, and the optimizer's state by name.

    ours   = apply_plan(model, plan)            `apply.py`: this room's own strategies, written to be read
    torchs = torch_engine.apply_plan(model, plan)      DDP, fully_shard, DTensor and torch's pipelining

    engine.optimize(lambda named: AdamW([p for _, p in named], lr=1e-3))
    for rows in batches:                        # every rank of a row part gives the same rows, whole
        nats, weight = engine.accumulate([rows], loss)
        engine.step(divisor=weight, clip=1.0)

The caller need not know which ranks do what: batches go in whole for the ranks that share their rows, and losses come
out for all. Everything here is a collective, unless it says otherwise.

A loop of its own, whose objective does more than call the model, takes the step apart:

    for number, batch in enumerate(batches):
        engine.backward(objective, batch, last=number + 1 == len(batches))
    engine.finish()                             # gradients are sums over ranks
    nats, weight = engine.over_ranks(sums)      # what the objective has kept
    engine.clip(1.0, divisor=weight)
    engine.optimizer.step()
    engine.zero_grad()
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from groundup.parallel.plan import Mesh, ParallelPlan

Batch = dict[str, Tensor]
"""`tokens` (batch, seq + 1), and where there are any `positions` and `segments` of the same shape."""

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(logits (..., vocab), targets (...)) -> (the sum of the tokens' losses, the number of tokens that count)."""

Objective = Callable[[nn.Module, Batch], Tensor]
"""(the model, this rank's part of a batch) -> a sum over the part's tokens, whose gradient is wanted."""

Named = Sequence[tuple[str, nn.Parameter]]


class Engine(Protocol):
    """A model on the ranks of a plan.

    modules: this rank's parts of the model, cut: one, or a pipeline's chunks, with the model's own names.
    optimizer: what `optimize` made, perhaps with ZeRO around it; None before.
    """

    plan: ParallelPlan
    mesh: Mesh
    optimizer: Any

    @property
    def modules(self) -> Sequence[nn.Module]: ...

    def inner(self) -> Any:
        """The optimizer that `optimize` was given, of what this rank updates: without ZeRO around it. No collective.

        RuntimeError before `optimize`.
        """
        ...

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """{parameter: its shape, where nothing cuts it}. No collective."""
        ...

    def cut_axes(self, name: str) -> set[str]:
        """The axes along which each rank has another part of this parameter, and not a copy. No collective."""
        ...

    def named_parameters(self) -> Named:
        """This rank's parameters, or its pieces of them, as plain tensors under the model's names. No collective."""
        ...

    def optimize(self, make: Callable[[Named], Any]) -> None:
        """Build the optimizer over what this rank trains, which it must treat elementwise where that is pieces."""
        ...

    def accumulate(self, batches: Sequence[Batch], loss: Loss) -> tuple[float, float]:
        """Forward and backward of this rank's batches of one step, as many on every rank; gradients add up over all.

        The sum of the loss and the number of tokens, over all ranks. Balancing losses of experts are part of the loss,
        each times the tokens of its batch. RuntimeError where the gradients of before have not been used by `step`.
        """
        ...

    def step(self, divisor: float = 1.0, clip: float = float("inf")) -> float:
        """Divide the gradients, clip them by the norm of all ranks', update, forget them. Returns the norm."""
        ...

    def backward(self, objective: Objective, batch: Batch, *, last: bool) -> None:
        """Forward and backward of one batch, of as many on every rank; gradients add up, and the `last` sends them.

        The objective may call any part of the model, several times, and read the model's own weights (those of no
        block: embedding, head, last norm), which are whole meanwhile, unless tensor parallelism cut them. RuntimeError
        after `finish`; ValueError with a pipeline, of which no stage is a model.
        """
        ...

    def finish(self) -> None:
        """Leave in `.grad` of `named_parameters` the sums over all ranks that had other tokens."""
        ...

    def over_ranks(self, sums: Tensor) -> Tensor:
        """The sum over all ranks that had other tokens, of what is a sum over this rank's. The same on every rank."""
        ...

    def clip(self, max_norm: float = float("inf"), *, divisor: Tensor | float = 1.0) -> Tensor:
        """Scale all ranks' gradients by min(1, max_norm / norm) / divisor; the norm, before, of the quotient.

        One that is not finite scales by the divisor only, as in `optim.clip_by_global_norm`. ValueError for a norm that
        is not above 0.
        """
        ...

    def zero_grad(self) -> None:
        """Forget the gradients: a new step begins. No collective."""
        ...

    def full_state_dict(self) -> dict[str, Tensor]:
        """Whole tensors by name, on every rank."""
        ...

    def load_full(self, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        """Take this rank's part of each whole tensor."""
        ...

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """{parameter: {"exp_avg": whole tensor, ...}}, on every rank."""
        ...

    def load_optimizer_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take this rank's part of a state that `optimizer_state` gave, under any plan."""
        ...
