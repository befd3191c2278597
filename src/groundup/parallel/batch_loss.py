"""The loss of a batch in `Engine.accumulate`: columns for the model, the next ones as targets, layers' own losses.

    tokens   a b c d e      the model reads   a b c d
                            and predicts        b c d e

It is one objective of those that `Engine.backward` runs; a trainer has others.
"""

from typing import Any

import torch
from torch import Tensor, nn

from groundup.parallel.engine import Batch, Loss


class ModelLoss:
    """`loss` of a model's logits as an objective, which keeps what it found: (sum of losses, tokens) of each batch."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.found: list[tuple[Tensor, Tensor]] = []

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        whole: Any = model
        tokens, inputs, targets = columns(batch)
        auxiliary: list[Tensor] = []
        if has_balancing_losses(model):
            logits = whole.logits(whole.hidden(tokens, **inputs, auxiliary=auxiliary))
        else:
            logits = whole(tokens, **inputs)
        total, weight = self.loss(logits, targets)
        weight = torch.as_tensor(weight, device=total.device)
        if auxiliary:
            total = total + weight * sum(auxiliary, torch.zeros_like(total))
        self.found.append((total, weight))
        return total


def columns(batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """(tokens, positions and segments by name, targets), of one column less.

    Raises ValueError for a batch that has something else, which a model would not be given.
    """
    if unknown := sorted(batch.keys() - {"tokens", "positions", "segments"}):
        raise ValueError(f"a batch has {', '.join(unknown)}; expected tokens, and perhaps positions and segments")
    inputs = {name: tensor[:, :-1] for name, tensor in batch.items()}
    return inputs.pop("tokens"), inputs, batch["tokens"][:, 1:]


def has_balancing_losses(model: nn.Module) -> bool:
    """Whether layers leave losses of their own in the list `auxiliary`: such a module declares `sum_batch`."""
    return any(hasattr(module, "sum_batch") for module in model.modules())
