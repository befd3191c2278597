"""Keeping experts equally busy: losses, the loss-free bias, and counts of who did how much.

Without any of it a router that slightly prefers an expert trains that expert more, hence prefers it more.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from groundup.model.router import Router, TopKRouter

Sum = Callable[[Tensor], Tensor]
"""Adds up a tensor over the processes that hold other tokens; on one process that is `alone`."""


def alone(x: Tensor) -> Tensor:
    """x itself: the sum over one process."""
    return x


@dataclass(frozen=True)
class Balance:
    """Coefficients of what a mixture of experts adds to the loss; 0 is without.

    load      Switch's auxiliary loss over all tokens of a micro-batch (0.01 there)
    sequence  the same for each sequence by itself (DeepSeek-V3: 0.0001, beside the loss-free bias)
    z         mean squared log of the router's softmax denominator (ST-MoE: 0.001), which keeps logits small
    """

    load: float = 0.0
    sequence: float = 0.0
    z: float = 0.0

    def __post_init__(self) -> None:
        for name in ("load", "sequence", "z"):
            if getattr(self, name) < 0:
                raise ValueError(f"balance: {name}={getattr(self, name)}; expected at least 0")


def load_balancing_loss(
    scores: Float[Tensor, "rows tokens experts"],
    chosen: Float[Tensor, "rows tokens experts"],
    valid: Bool[Tensor, "rows tokens"],
    sum_rows: Sum = alone,
    sum_batch: Sum = alone,
) -> Float[Tensor, ""]:
    r"""N sum_i f_i P_i for each row, averaged over rows by their numbers of tokens; 1 when all is even.

    f_i is the share of the row's choices that fell on expert i (0 or 1 in `chosen`), P_i the mean score of i.
    Only P has a gradient: it lowers the scores of experts that are chosen often.

    Fedus et al. 2021, eq. 4 to 6 (arXiv:2101.03961) with one row of all tokens; DeepSeek-V3's eq. 17 to 20
    (arXiv:2412.19437) with a row per sequence. Implementations that divide choices by tokens instead of by choices
    have top_k times as much. One row is not linear in its tokens, so micro-batches change this loss a little; with
    rows for sequences they do not.

    On several processes `sum_rows` adds up what they have of the same rows, and `sum_batch` the rows' losses, in which
    a row may count for each process that has a part of it. Every process then gets the loss of all tokens.
    """
    counts, sums, tokens = _row_sums(scores, chosen, valid, sum_rows)
    share = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    mean = sums / tokens.clamp(min=1)[:, None]
    loss = scores.shape[-1] * (share * mean).sum(-1)
    total, weight = sum_batch(torch.stack([(loss * tokens).sum(), tokens.sum()])).unbind()
    return total / weight.clamp(min=1)


def _row_sums(scores: Tensor, chosen: Tensor, valid: Tensor, sum_rows: Sum) -> tuple[Tensor, Tensor, Tensor]:
    """(choices per expert, sums of scores per expert, tokens) of each row, by one sum."""
    parts = [chosen * valid[..., None], scores * valid[..., None], valid[..., None].to(scores.dtype)]
    experts = scores.shape[-1]
    counts, sums, tokens = sum_rows(torch.cat([part.sum(1) for part in parts], -1)).split([experts, experts, 1], -1)
    return counts, sums, tokens[:, 0]


def router_z_loss(
    logits: Float[Tensor, "tokens experts"], valid: Bool[Tensor, " tokens"], sum_batch: Sum = alone
) -> Float[Tensor, ""]:
    """Mean over tokens of (log sum_i exp logit_i)^2. Zoph et al. 2022, eq. 5 (arXiv:2202.08906)."""
    return mean_over_tokens(logits.logsumexp(-1).square(), valid, sum_batch)


def mean_over_tokens(
    values: Float[Tensor, " tokens"], valid: Bool[Tensor, " tokens"], sum_batch: Sum = alone
) -> Float[Tensor, ""]:
    """The mean over valid tokens, of all processes that `sum_batch` reaches."""
    total, weight = sum_batch(torch.stack([(values * valid).sum(), valid.sum(dtype=values.dtype)])).unbind()
    return total / weight.clamp(min=1)


def routers(model: nn.Module) -> dict[str, Router]:
    """Every router of the model by its path."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Router)}


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Of the latest forward pass: max / mean load of experts (1 is even) and the share dropped, mean over layers."""
    found = routers(model).values()
    if not found:
        return {}
    loads = torch.stack([router.load.max() / router.load.mean().clamp(min=1e-9) for router in found])
    ran = torch.stack([router.load.sum() > 0 for router in found])  # those of further tokens may not
    count = ran.sum().clamp(min=1)
    dropped = torch.stack([router.dropped for router in found])
    return {"expert_load": (loads * ran).sum() / count, "expert_dropped": (dropped * ran).sum() / count}


def start_step(model: nn.Module) -> None:
    """Forget the loads of the step before."""
    for router in routers(model).values():
        router.step_load.zero_()


def count_micro_batch(model: nn.Module) -> None:
    """Add what the latest forward pass routed to the step's loads: once for each, before its backward pass."""
    for router in routers(model).values():
        router.step_load += router.load


def step_loads(model: nn.Module) -> list[Tensor]:
    """The step's loads, to be summed over ranks in place."""
    return [router.step_load for router in routers(model).values()]


@torch.no_grad()
def update_biases(model: nn.Module, skip: Tensor | None = None) -> None:
    """b_i <- b_i + rate * sign(mean load - load_i), from the step's loads; nothing where the scalar `skip` is 1.

    Wang et al. 2024, algorithm 1 (arXiv:2408.15664). Once per optimizer step, with the loads of all its
    micro-batches and ranks: the sign of a part would not be the sign of the whole.
    """
    for router in routers(model).values():
        if router.bias is None or not isinstance(router.config, TopKRouter) or not router.config.bias_rate:
            continue
        if router.weight is not None and not router.weight.requires_grad:
            continue  # a frozen base, as under LoRA, whose files have no place for a bias
        change = router.config.bias_rate * (router.step_load.mean() - router.step_load).sign()
        router.bias += change if skip is None else change * (1 - skip)
