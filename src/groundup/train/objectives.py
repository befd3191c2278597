"""Objectives: (model, batch) -> a sum of losses and the weight that divides it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from groundup.data.batch import Batch
from groundup.kernels.cross_entropy import linear_cross_entropy
from groundup.model.balance import routers, statistics
from groundup.model.hard_choice import Choice, ReinforceRouter
from groundup.train import reinforce


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

    A mixture of experts adds its balancing losses; `metrics` then has their sum and the experts' loads. Choices that
    were sampled get their gradient here, and change no value (see `reinforce`).

    z_loss: adds z_loss * (log of the softmax's denominator)^2 to each token's loss, which keeps logits from
    drifting (Chowdhery et al. 2022 use 1e-4); `functools.partial(next_token, z_loss=1e-4)` is an objective.
    """
    greedy = reinforce.greedy_nats(model, batch, _inputs(batch))
    choices: list[Choice] = []
    hidden, auxiliary = _hidden(model, batch, choices)
    total, weight = _cross_entropy(model, hidden, batch, ahead=1, z_loss=z_loss)
    if choices:
        total = total + reinforce.score_function(choices, reinforce.token_nats(model, hidden, batch), greedy, batch)
    return _with_auxiliary(Loss(total, weight), model, auxiliary)


def multi_token(model: nn.Module, batch: Batch, *, z_loss: float = 0.0) -> Loss:
    """`next_token`, plus the losses of the model's multi-token modules on the tokens after the next.

    total = main + weight / depth * sum over depths; DeepSeek-V3, eq. 24 and 25 (arXiv:2412.19437), where every
    loss is divided by the number of tokens of the main one. `metrics` has each depth's own sum of nats, as `ahead_2`
    and so on. A prediction counts where the mask weighs it and all tokens up to it are of one segment.
    """
    extra: Any = getattr(model, "multi_token", None)
    if extra is None:
        raise ValueError("multi_token: the model has no multi-token modules; set its config's multi_token")
    if any(isinstance(router.config, ReinforceRouter) for router in routers(model).values()):
        raise ValueError(
            "multi_token: choices of a ReinforceRouter are trained by next_token alone; use another router"
        )
    hidden, auxiliary = _hidden(model, batch)
    states = extra(model, hidden, batch["tokens"][:, 1:-1], **_inputs(batch), auxiliary=auxiliary)
    total, weight = _cross_entropy(model, hidden, batch, ahead=1, z_loss=z_loss)
    metrics = {}
    for ahead, state in enumerate(states, 2):
        further, _ = _cross_entropy(model, state, batch, ahead=ahead)
        total = total + extra.config.weight / extra.config.depth * further
        metrics[f"ahead_{ahead}"] = further.detach()
    return _with_auxiliary(Loss(total, weight, metrics), model, auxiliary)


def pretraining(model: nn.Module) -> Any:
    """The objective that trains all of a model: `multi_token` where it has such modules, else `next_token`."""
    return next_token if getattr(model, "multi_token", None) is None else multi_token


def _inputs(batch: Batch) -> dict[str, Tensor]:
    return {name: batch[name][:, :-1] for name in ("positions", "segments") if name in batch}


def _hidden(model: nn.Module, batch: Batch, choices: list[Choice] | None = None) -> tuple[Tensor, list[Tensor] | None]:
    """What the head reads, and the losses that layers left behind (None: the model has no such layers)."""
    tokens, head = batch["tokens"], model.head_weight
    _check_ids(tokens, head.shape[0])  # type: ignore[union-attr]
    if not routers(model):
        return model.hidden(tokens[:, :-1], **_inputs(batch)), None  # type: ignore[operator]
    auxiliary: list[Tensor] = []
    left = {"auxiliary": auxiliary, "choices": choices}
    return model.hidden(tokens[:, :-1], **_inputs(batch), **left), auxiliary  # type: ignore[operator]


def _cross_entropy(
    model: nn.Module, hidden: Tensor, batch: Batch, *, ahead: int, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(sum of losses, sum of weights) of predicting, from each position, the token `ahead` places on."""
    head: Any = model.head_weight
    weights = batch["mask"][:, ahead:].float() if "mask" in batch else None
    if ahead > 1 and "segments" in batch:
        segments = batch["segments"]
        whole = (segments[:, ahead - 1 : -1] == segments[:, :-ahead]).float()
        weights = whole if weights is None else weights * whole
    return linear_cross_entropy(
        hidden, head, batch["tokens"][:, ahead:], weights,
        softcap=getattr(getattr(model, "config", None), "logit_softcap", None),
        z_loss=z_loss, compiled=bool(getattr(model, "compiled", False)),
    )  # fmt: skip


def _with_auxiliary(loss: Loss, model: nn.Module, auxiliary: list[Tensor] | None) -> Loss:
    """Layers' losses are means over tokens, so they are multiplied by the weight that the sum will be divided by."""
    if auxiliary is None:
        return loss
    extra = loss.weight * sum(auxiliary, torch.zeros_like(loss.total))
    means = {"auxiliary": extra.detach()} | {name: loss.weight * v for name, v in statistics(model).items()}
    return Loss(loss.total + extra, loss.weight, loss.metrics | means)


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
