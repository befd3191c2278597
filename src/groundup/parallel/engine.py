"""What both engines give for a plan: one training step, the weights by name, and the optimizer's state by name.

    ours   = apply_plan(model, plan)            `apply.py`: this room's own strategies, written to be read
    torchs = torch_engine.apply_plan(model, plan)      DDP, fully_shard, DTensor and torch's pipelining

    engine.optimize(lambda named: AdamW([p for _, p in named], lr=1e-3))
    for rows in batches:                        # every rank of a row part gives the same rows, whole
        nats, weight = engine.accumulate([rows], loss)
        engine.step(divisor=weight, clip=1.0)

The caller need not know which ranks do what: batches go in whole for the ranks that share their rows, and losses come
out for all. Everything here is a collective, unless it says otherwise.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from groundup.parallel.plan import Mesh, ParallelPlan

Batch = dict[str, Tensor]
"""`tokens` (batch, seq + 1), and where there are any `positions` and `segments` of the same shape."""

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(logits (..., vocab), targets (...)) -> (the sum of the tokens' losses, the number of tokens that count)."""

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

    def named_parameters(self) -> Named:
        """This rank's parameters, or its pieces of them, under the model's names. No collective."""
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
