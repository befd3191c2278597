"""A plan for a model that will be used: smaller than the training budget's best, trained longer, cheaper in the end.

The budget's own plan (`cluster_plan.py`) sets the loss. Of all models with that loss the one is planned whose training
and serving cost least together (`inference_optimal.py`; with too little text `repeated_inference.py`). Its training
takes more than the budget; its serving returns that.
"""

import contextlib
import math
from dataclasses import dataclass, field, replace

from groundup.accounting.cluster_plan import Budget, ClusterPlan, made, plan_cluster, shape
from groundup.accounting.compute_optimal import EPOCH
from groundup.accounting.devices import Cluster
from groundup.accounting.flops import training_flops_per_token
from groundup.accounting.inference_optimal import Serving, cheapest
from groundup.accounting.params import count_parameters
from groundup.accounting.repeated_inference import cheapest_repeated, tokens_for_loss
from groundup.model import ModelConfig

SIZES_AROUND = (0.85, 1.0, 1.15, 1.3, 1.5)

FORWARD_SHARE = 1 / 3
"""Of the FLOPs of training on a token."""


@dataclass(frozen=True)
class LifetimePlan:
    """`chosen` instead of `usual`, both with one predicted loss, and what serving each takes on the same devices.

    Device-seconds are those of one device. `chosen` is `usual` where so few tokens are served that no smaller model
    pays.
    """

    chosen: ClusterPlan
    usual: ClusterPlan
    served_tokens: float
    serving_mfu: float
    chosen_flops: float
    usual_flops: float
    chosen_device_seconds: float
    usual_device_seconds: float
    assumptions: list[str] = field(default_factory=list)

    @property
    def saved(self) -> float:
        """The share of the lifetime's device-seconds that choosing it saves, 0 to 1."""
        return 1 - self.chosen_device_seconds / self.usual_device_seconds


def plan_lifetime(
    budget: Budget, cluster: Cluster, served_tokens: float, serving_mfu: float | None = None
) -> LifetimePlan:
    """The plan of least device-seconds for training and for serving so many tokens, at the budget's own loss.

    `served_tokens` are read and written, both; `serving_mfu` is the share of the peak that serving them reaches (None:
    that of training). ValueError as `plan_cluster`, and for numbers that are not positive.
    """
    mfu = budget.mfu if serving_mfu is None else serving_mfu
    if not 0 < mfu <= 1:
        raise ValueError(f"plan: serving_mfu={mfu}; expected a share of the peak, up to 1")
    if not 0 < served_tokens < float("inf"):
        raise ValueError(f"plan: served_tokens={served_tokens}; expected a positive number")
    usual = plan_cluster(budget, cluster)[0]
    chosen = _smaller(usual, budget, cluster, Serving(served_tokens, 1 / budget.mfu, 1 / mfu))
    served = {id(plan): serving_flops(plan.model, served_tokens) for plan in (usual, chosen)}
    seconds = {
        key: (plan.flops / budget.mfu + served[key] / mfu) / cluster.device_flops
        for key, plan in ((id(usual), usual), (id(chosen), chosen))
    }
    if seconds[id(chosen)] >= seconds[id(usual)]:
        chosen = usual
    return LifetimePlan(
        chosen, usual, served_tokens, mfu, *(plan.flops + served[id(plan)] for plan in (chosen, usual)),
        *(seconds[id(plan)] for plan in (chosen, usual)),
        assumptions=[
            f"serving at an MFU of {mfu:g}; writing token by token often reaches less, and then a smaller model pays "
            "even more",
            f"{chosen.tokens_per_parameter:,.0f} tokens per parameter: the law was fitted to far fewer than thousands",
            "a served token costs a forward pass at the full context, a third of one of training",
        ],
    )  # fmt: skip


def serving_flops(model: ModelConfig, tokens: float) -> float:
    """FLOPs of reading and writing so many tokens."""
    return tokens * FORWARD_SHARE * training_flops_per_token(model, model.context_length)


def _smaller(usual: ClusterPlan, budget: Budget, cluster: Cluster, serving: Serving) -> ClusterPlan:
    unique = budget.unique_tokens
    # One vocabulary and one context, or neither losses nor served tokens compare.
    budget = replace(budget, vocab_size=usual.model.vocab_size, context_length=usual.model.context_length)
    best = (
        cheapest(usual.loss, serving) if unique is None else cheapest_repeated(usual.loss, serving, unique)
    )  # fmt: skip
    # Shapes come in steps: those around it need a few tokens more or less for that loss, or never reach it.
    models = {shape(share * best.parameters, budget) for share in SIZES_AROUND}
    lengths = {m: tokens_for_loss(usual.loss, count_parameters(m).total, unique, EPOCH) for m in models}
    for model in sorted(models, key=lambda m: lifetime_cost(m, lengths[m], serving)):
        if math.isinf(lengths[model]):
            break
        with contextlib.suppress(ValueError):  # too large for the devices, as the budget's own optimum may be
            return made(model, lengths[model], budget, cluster)
    return usual


def lifetime_cost(model: ModelConfig, tokens: float, serving: Serving) -> float:
    """In the unit of the prices, with the FLOPs of this model in place of 6 N and 2 N."""
    training = tokens * training_flops_per_token(model, model.context_length) * serving.training_price
    return training + serving_flops(model, serving.tokens) * serving.serving_price
