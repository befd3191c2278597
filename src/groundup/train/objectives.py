"""Objectives: (model, batch) -> a sum of losses and the weight that divides it."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from groundup.data.batch import Batch
from groundup.kernels.cross_entropy import linear_cross_entropy
from groundup.model.balance import routers, statistics
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.hard_choice import Choice, ReinforceRouter
from groundup.train import reinforce
from groundup.train.masked import mask_tokens


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
    _require_causal(model, "next_token")
    greedy = reinforce.greedy_nats(model, batch, _inputs(batch), z_loss)
    choices: list[Choice] = []
    hidden, auxiliary = _hidden(model, batch, choices)
    total, weight = _cross_entropy(model, hidden, batch, ahead=1, z_loss=z_loss)
    if choices and torch.is_grad_enabled():
        nats = reinforce.token_nats(model, hidden, batch, z_loss)
        total = total + reinforce.score_function(choices, nats, greedy, batch)
    return _with_auxiliary(Loss(total, weight), model, auxiliary)


def multi_token(model: nn.Module, batch: Batch, *, z_loss: float = 0.0) -> Loss:
    """`next_token`, plus the losses of the model's multi-token modules on the tokens after the next.

    total = main + weight / depth * sum over depths; DeepSeek-V3, eq. 24 and 25 (arXiv:2412.19437), where every
    loss is divided by the number of tokens of the main one. `metrics` has each depth's own sum of nats, as `ahead_2`
    and so on. A prediction counts where the mask weighs it and all tokens up to it are of one segment.
    """
    _require_one_stack(model, "multi_token")
    extra: Any = getattr(model, "multi_token", None)
    if extra is None:
        raise ValueError("multi_token: the model has no multi-token modules; set its config's multi_token")
    _refuse_sampled(model, "multi_token")
    hidden, auxiliary = _hidden(model, batch)
    states = extra(model, hidden, batch["tokens"][:, 1:-1], **_inputs(batch), auxiliary=auxiliary)
    total, weight = _cross_entropy(model, hidden, batch, ahead=1, z_loss=z_loss)
    metrics = {}
    for ahead, state in enumerate(states, 2):
        further, _ = _cross_entropy(model, state, batch, ahead=ahead)
        total = total + extra.config.weight / extra.config.depth * further
        metrics[f"ahead_{ahead}"] = further.detach()
    return _with_auxiliary(Loss(total, weight, metrics), model, auxiliary)


def masked_tokens(
    model: nn.Module,
    batch: Batch,
    *,
    mask_id: int,
    share: float = 0.15,
    special_ids: Sequence[int] = (),
    seed: int = 0,
) -> Loss:
    """Cross-entropy of hidden tokens given all others on both sides, summed over the hidden ones: BERT's objective.

    `share` of each row's tokens are hidden, see `masked.mask_tokens`; `functools.partial(masked_tokens, mask_id=...)`
    is an objective. Never hidden are `special_ids`, `mask_id`, and what has no weight in `mask` or a position of -1.
    As in `next_token`, column 0 is not predicted; nor is it read. What is hidden depends on `seed` and on the row's
    tokens, so a row that returns unchanged has the same gaps: give the batch a `seed` (batch,) to vary them.

    ValueError for a causal model, which would not see what comes after a gap. Devlin et al. 2018 (arXiv:1810.04805).
    """
    _require_encoder(model, mask_id, share)
    _refuse_sampled(model, "masked_tokens")
    batch = {name: tensor if name == "seed" else tensor[:, 1:] for name, tensor in batch.items()}
    tokens, head = batch["tokens"], cast(Tensor, model.head_weight)
    vocab_size = head.shape[0]
    check_ids(tokens, vocab_size, first=1)
    eligible = torch.ones_like(tokens, dtype=torch.bool)
    for special in (mask_id, *special_ids):
        eligible &= tokens != special
    eligible &= batch["mask"] > 0 if "mask" in batch else True
    eligible &= batch["positions"] >= 0 if "positions" in batch else True
    gaps = mask_tokens(tokens, eligible, mask_id, vocab_size, share, seed, batch.get("seed"))
    extra = {name: batch[name] for name in ("positions", "segments") if name in batch}
    hidden, auxiliary = _states(model, gaps.tokens, None, **extra)
    weights = gaps.chosen.float() * (batch["mask"].gather(1, gaps.places) if "mask" in batch else 1.0)
    # Only what stands at the gaps goes through the head: a seventh of the work.
    hidden = hidden.gather(1, gaps.places[..., None].expand(-1, -1, hidden.shape[-1]))
    total, weight = _losses(model, hidden, tokens.gather(1, gaps.places), weights)
    return _with_auxiliary(Loss(total, weight), model, auxiliary)


def sequence_to_sequence(model: nn.Module, batch: Batch, *, split: float = 0.5) -> Loss:
    """Cross-entropy of each token of a target given the source and the tokens before it, for an `EncoderDecoder`.

    A batch of pairs has `source` (batch, source length), with `source_positions` of -1 at its padding, beside `tokens`
    (batch, seq + 1), which begins with the token to start from, and `mask` as in `next_token`. One of plain windows of
    text is cut: the first `split` of each row is the source, the rest the target, and the decoder starts from the
    source's last token. That is the continuation objective of Raffel et al. 2019, section 3.2 (arXiv:1910.10683).
    Documents packed into rows stay apart by their `segments` (and `source_segments`).
    """
    if not isinstance(model, EncoderDecoder):
        kind = type(model).__name__
        raise ValueError(f"sequence_to_sequence: a {kind} has no source; give an EncoderDecoder, or use next_token")
    _refuse_sampled(model, "sequence_to_sequence")
    batch = batch if "source" in batch else _cut(batch, split)
    check_ids(batch["source"], model.config.encoder.vocab_size)
    check_ids(batch["tokens"], model.config.vocab_size)
    sources = {name: batch[name] for name in ("source_positions", "source_segments") if name in batch}
    auxiliary: list[Tensor] | None = [] if routers(model) else None
    target = batch["tokens"][:, :-1]
    hidden = model.hidden(batch["source"], target, **sources, **_inputs(batch), auxiliary=auxiliary)
    total, weight = _cross_entropy(model, hidden, batch, ahead=1)
    return _with_auxiliary(Loss(total, weight), model, auxiliary)


def _cut(batch: Batch, split: float) -> Batch:
    """Windows of text as pairs; the last token of the source is the first of the target's row."""
    columns = batch["tokens"].shape[1]
    if not 0 < split < 1 or columns < 2:
        raise ValueError(f"sequence_to_sequence: split={split} of {columns} columns; expected a share of two or more")
    cut = min(max(round(split * columns), 1), columns - 1)
    sources = {f"source_{name}": batch[name][:, :cut] for name in ("positions", "segments") if name in batch}
    targets = {name: tensor[:, cut - 1 :] for name, tensor in batch.items() if name != "seed"}
    return targets | sources | {"source": batch["tokens"][:, :cut]}


def pretraining(model: nn.Module, z_loss: float = 0.0) -> Any:
    """The objective that trains all of a model: `multi_token` where it has such modules, else `next_token`."""
    objective = next_token if getattr(model, "multi_token", None) is None else multi_token
    return functools.partial(objective, z_loss=z_loss) if z_loss else objective


def vocabularies(model: nn.Module) -> dict[str, int]:
    """How many ids there are for each tensor of a batch that holds ids; empty for a model without a known head."""
    if isinstance(model, EncoderDecoder):
        return {"tokens": model.config.decoder.vocab_size, "source": model.config.encoder.vocab_size}
    head = getattr(model, "head_weight", None)
    return {} if head is None else {"tokens": len(cast(Tensor, head))}


def _inputs(batch: Batch) -> dict[str, Tensor]:
    return {name: batch[name][:, :-1] for name in ("positions", "segments") if name in batch}


def _require_one_stack(model: nn.Module, objective: str) -> None:
    if isinstance(model, EncoderDecoder):
        raise ValueError(f"{objective}: an EncoderDecoder needs a source; train it with sequence_to_sequence")


def _require_causal(model: nn.Module, objective: str) -> None:
    _require_one_stack(model, objective)
    if not getattr(getattr(model, "config", None), "causal", True):
        raise ValueError(
            f"{objective}: a layer of the model has causal=False and sees the very token that it should predict; "
            "train it with masked_tokens, or build it with causal=True"
        )


def _refuse_sampled(model: nn.Module, objective: str) -> None:
    if any(isinstance(router.config, ReinforceRouter) for router in routers(model).values()):
        raise ValueError(
            f"{objective}: choices of a ReinforceRouter are trained by next_token alone; use another router"
        )


def _require_encoder(model: nn.Module, mask_id: int, share: float) -> None:
    _require_one_stack(model, "masked_tokens")
    config = getattr(model, "config", None)
    if getattr(config, "causal", True):
        raise ValueError(
            "masked_tokens: every layer of the model is causal, so what comes after a gap is not seen; build it with "
            "causal=False in its attention, as presets.encoder does, or train it with next_token"
        )
    vocab_size = getattr(config, "vocab_size", mask_id + 1)
    if not 0 <= mask_id < vocab_size:
        raise ValueError(f"masked_tokens: mask_id={mask_id} is outside the model's vocabulary 0..{vocab_size - 1}")
    if not 0 < share < 1:
        raise ValueError(f"masked_tokens: share={share}; expected a share of the tokens, such as 0.15")


def _hidden(model: nn.Module, batch: Batch, choices: list[Choice] | None = None) -> tuple[Tensor, list[Tensor] | None]:
    """What the head reads of all columns but the last, and `_states`'s losses."""
    tokens, head = batch["tokens"], model.head_weight
    check_ids(tokens, head.shape[0])  # type: ignore[union-attr]
    return _states(model, tokens[:, :-1], choices, **_inputs(batch))


def _states(
    model: nn.Module, tokens: Tensor, choices: list[Choice] | None = None, **inputs: Tensor
) -> tuple[Tensor, list[Tensor] | None]:
    """What the head reads, and the losses that layers left behind (None: the model has no such layers)."""
    if not routers(model):
        return model.hidden(tokens, **inputs), None  # type: ignore[operator]
    auxiliary: list[Tensor] = []
    return model.hidden(tokens, **inputs, auxiliary=auxiliary, choices=choices), auxiliary  # type: ignore[operator]


def _cross_entropy(
    model: nn.Module, hidden: Tensor, batch: Batch, *, ahead: int, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(sum of losses, sum of weights) of predicting, from each position, the token `ahead` places on."""
    weights = batch["mask"][:, ahead:].float() if "mask" in batch else None
    if ahead > 1 and "segments" in batch:
        segments = batch["segments"]
        whole = (segments[:, ahead - 1 : -1] == segments[:, :-ahead]).float()
        weights = whole if weights is None else weights * whole
    return _losses(model, hidden, batch["tokens"][:, ahead:], weights, z_loss)


def _losses(
    model: nn.Module, hidden: Tensor, targets: Tensor, weights: Tensor | None, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(sum of losses, sum of weights) of the model's head."""
    head: Any = model.head_weight
    return linear_cross_entropy(
        hidden, head, targets, weights,
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


def check_ids(tokens: Tensor, vocab_size: int, first: int = 0) -> None:
    """ValueError for an id that the model has not; `first` is the batch's column that `tokens` begin with."""
    # On an accelerator the look would drain the queue; `feed` looks before the batch goes there.
    if tokens.device.type != "cpu" or tokens.numel() == 0:
        return
    low, high = torch.aminmax(tokens)
    if int(low) >= 0 and int(high) < vocab_size:
        return
    row, column = ((tokens < 0) | (tokens >= vocab_size)).nonzero()[0].tolist()
    raise ValueError(
        f"batch row {row}, position {first + column}: token id {int(tokens[row, column])} is outside the model's "
        f"vocabulary 0..{vocab_size - 1}; was this data written with another tokenizer?"
    )
