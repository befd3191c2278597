"""Objectives: (model, batch) -> a sum of losses and the weight that divides it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from groundup.data.batch import Batch
from groundup.kernels.cross_entropy import linear_cross_entropy


@dataclass
class Loss:
    """Sums, so that micro-batches and ranks add up exactly; the trainer divides by the summed weight.

    metrics: more sums over the same weight; their means are logged under their names.
    """

    total: Tensor
    weight: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


def next_token(model: nn.Module, batch: Batch, *, z_loss: float = 0.0) -> Loss:
    """Cross-entropy of each token given those before it, in nats, summed over the batch.

    Pretraining and SFT are both this: `mask` (batch, seq + 1) weighs the prediction of each token (its first
    column predicts nothing and is ignored); without one every token weighs 1.

    z_loss: adds z_loss * (log of the softmax's denominator)^2 to each token's loss, which keeps logits from
    drifting (Chowdhery et al. 2022 use 1e-4); `functools.partial(next_token, z_loss=1e-4)` is an objective.
    """
    tokens = batch["tokens"]
    head: Any = model.head_weight
    _check_ids(tokens, head.shape[0])
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    context = {name: batch[name][:, :-1] for name in ("positions", "segments") if name in batch}
    hidden = model.hidden(inputs, **context)  # type: ignore[operator]
    weights = batch["mask"][:, 1:].float() if "mask" in batch else None
    softcap = getattr(getattr(model, "config", None), "logit_softcap", None)
    compiled = bool(getattr(model, "compiled", False))
    total, weight = linear_cross_entropy(
        hidden, head, targets, weights, softcap=softcap, z_loss=z_loss, compiled=compiled
    )
    return Loss(total, weight)


def _check_ids(tokens: Tensor, vocab_size: int) -> None:
    # On an accelerator the look would drain the queue; there the embedding's own assertion stands guard.
    if tokens.device.type != "cpu" or tokens.numel() == 0:
        return
    low, high = torch.aminmax(tokens)
    if int(low) >= 0 and int(high) < vocab_size:
        return
    row, column = ((tokens < 0) | (tokens >= vocab_size)).nonzero()[0].tolist()
    raise ValueError(
        f"batch row {row}, position {column}: token id {int(tokens[row, column])} is outside the model's "
        f"vocabulary 0..{vocab_size - 1}; was this data written with another tokenizer?"
    )
