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
    total = nats.new_zeros(())
    for choice in choices:
        costs = costs_to_go(nats, choice.config.discount, segments)
        match choice.config.baseline:
            case "none":
                advantage = costs
            case "mean":
                advantage = costs - mean_of_others(costs)
            case "greedy":
                assert greedy is not None, "the baseline is that of a pass which was not made"
                advantage = costs - costs_to_go(greedy, choice.config.discount, segments)
        total = total + (advantage.detach() * choice.log_probs).sum()
    return total - total.detach()


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
    return (weights * nats[:, None, :]).sum(-1)


def mean_of_others(costs: Nats) -> Nats:
    """The mean over the batch's other rows at the same position: what a row chose is not in its own baseline, which
    would bias it. 0 for a row that is alone."""
    return (costs.sum(0) - costs) / max(len(costs) - 1, 1)


@torch.no_grad()
def token_nats(model: Any, hidden: Float[Tensor, "batch seq d_model"], batch: Batch) -> Nats:
    """Each token's loss times its weight, a row at a time: the fused loss has only their sum."""
    targets = batch["tokens"][:, 1:]
    rows = [F.cross_entropy(model.logits(h), t, reduction="none") for h, t in zip(hidden, targets, strict=True)]
    nats = torch.stack(rows)
    return nats * batch["mask"][:, 1:].to(nats.dtype) if "mask" in batch else nats


def greedy_nats(model: nn.Module, batch: Batch, inputs: dict[str, Tensor]) -> Nats | None:
    """`token_nats` with the best experts taken everywhere; None where no router's baseline is that."""
    configs = [router.config for router in routers(model).values()]
    wanted = any(isinstance(c, ReinforceRouter) and c.baseline == "greedy" for c in configs)
    if not wanted or not model.training or not torch.is_grad_enabled():
        return None
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            return token_nats(model, model.hidden(batch["tokens"][:, :-1], **inputs), batch)  # type: ignore[operator]
    finally:
        for module, mode in modes.items():
            module.training = mode
