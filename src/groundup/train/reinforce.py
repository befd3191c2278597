"""The gradient of sampled choices: each is told what came of it. Williams 1992; see `model.hard_choice`."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from groundup.data.batch import Batch
from groundup.model.balance import routers
from groundup.model.hard_choice import Choice, ReinforceRouter

Nats = Float[Tensor, "batch seq"]


def score_function(choices: Sequence[Choice], nats: Nats, greedy: Nats | None, batch: Batch) -> Float[Tensor, ""]:
    r"""Zero, with the gradient sum over choices of (cost - baseline) grad log p(choice).

    Added to the summed loss, whose own gradient takes the choices as given, it makes the gradient an unbiased estimate
    of that of the expected loss, where the discount is 1.
    """
    segments = batch["segments"][:, : nats.shape[1]] if "segments" in batch else None
    advantages = {config: _advantage(config, nats, greedy, segments) for config in {c.config for c in choices}}
    total = nats.new_zeros(())
    for choice in choices:
        total = total + (advantages[choice.config].detach() * choice.log_probs).sum()
    return total - total.detach()


def _advantage(config: ReinforceRouter, nats: Nats, greedy: Nats | None, segments: Tensor | None) -> Nats:
    costs = costs_to_go(nats, config.discount, segments)
    match config.baseline:
        case "none":
            return costs
        case "mean":
            return costs - mean_of_others(costs)
        case "greedy":
            assert greedy is not None, "the baseline is that of a pass which was not made"
            return costs - costs_to_go(greedy, config.discount, segments)


def costs_to_go(nats: Nats, discount: float, segments: Int[Tensor, "batch seq"] | None = None) -> Nats:
    """cost_t = sum over s >= t of discount^(s - t) nats_s, within t's document.

    >>> costs_to_go(torch.tensor([[1.0, 2.0, 4.0]]), 0.5).tolist()
    [[3.0, 4.0, 4.0]]
    """
    place = torch.arange(nats.shape[1], device=nats.device)
    ahead = place[None, :] - place[:, None]
    weights = torch.where(ahead >= 0, discount ** ahead.clamp(min=0).to(nats.dtype), 0.0)[None]
    if segments is not None:
        weights = weights * (segments[:, :, None] == segments[:, None, :])
    return (weights @ nats[..., None])[..., 0]


def mean_of_others(costs: Nats) -> Nats:
    """The mean over the batch's other rows at the same position: what a row chose is not in its own baseline, which
    would bias it. 0 for a row that is alone."""
    return (costs.sum(0) - costs) / max(len(costs) - 1, 1)


@torch.no_grad()
def token_nats(model: Any, hidden: Float[Tensor, "batch seq d_model"], batch: Batch, z_loss: float = 0.0) -> Nats:
    """Each token's loss times its weight, a row at a time: the fused loss has only their sum."""
    rows = []
    for states, targets in zip(hidden, batch["tokens"][:, 1:], strict=True):
        logits = model.logits(states)
        rows.append(F.cross_entropy(logits, targets, reduction="none") + z_loss * logits.logsumexp(-1).square())
    nats = torch.stack(rows)
    return nats * batch["mask"][:, 1:].to(nats.dtype) if "mask" in batch else nats


def greedy_nats(model: nn.Module, batch: Batch, inputs: dict[str, Tensor], z_loss: float = 0.0) -> Nats | None:
    """`token_nats` with the best experts taken everywhere; None where no router that samples has it as baseline."""
    sampled = [router.config for router in routers(model).values() if router.training]
    wanted = any(isinstance(config, ReinforceRouter) and config.baseline == "greedy" for config in sampled)
    if not wanted or not torch.is_grad_enabled():
        return None
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            hidden = model.hidden(batch["tokens"][:, :-1], **inputs)  # type: ignore[operator]
            return token_nats(model, hidden, batch, z_loss)
    finally:
        for module, mode in modes.items():
            module.training = mode
