"""A plan for accelerators that are not here: shape, tokens, memory, time, energy and price, from published laws.

`plan.py` plans for the machine that it runs on, whose speed and text it has measured. Here nothing was measured: the
rate is the data sheet's times an assumed MFU, the loss is Chinchilla's law on web text, and batch and learning rate
come from DeepSeek's fits. Every such assumption is in `ClusterPlan.assumptions`.

Where the devices are those of a machine that `groundup doctor` measured, its rates take the place of the data sheet's.
An MFU that others reached has their messages in it; where the link is known, the MFU is of arithmetic alone, messages
and the update come on top, and the placement of least time is chosen (`placement.py`, `fitting.py`).
"""

import math
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from functools import cache

from groundup import presets
from groundup.accounting.compute_optimal import (
    EPOCH,
    FLOPS_PER_PARAMETER_AND_TOKEN,
    HOFFMANN,
    REPEAT_WORTH,
    Chinchilla,
    Optimum,
    optimum,
    worth,
)
from groundup.accounting.devices import Cluster
from groundup.accounting.fitting import chosen
from groundup.accounting.flops import training_flops_per_token
from groundup.accounting.params import count_parameters
from groundup.model import ModelConfig

MFU = 0.4
"""Share of the dense peak that well-kept training on GPUs reaches; 0.33 to 0.5 is usual, and none was measured here."""

SIZES_BESIDE = (0.5, 2.0)
WIDTHS = [*range(64, 1024, 64), *range(1024, 4096, 128), *range(4096, 32_769, 256)]
D_HEAD, GROUPED_FROM, KV_HEADS = 128, 2048, 8
_HOUR = 3600.0

ROUNDS, NEAR = 8, 1e-3
"""Turns in which a plan is cut to its time, and how near to it is near enough."""


@dataclass(frozen=True)
class ClusterPlan:
    """One way to spend a budget.

    tokens are read in all, `epochs` times the unique ones (None: as many unique ones as that). `loss` is in nats per
    token, `loss_interval` spans two published fits of the law. `micro_batch` is rows per device and pass, `recompute`
    whether activations are computed again, `sharding` how parameters, gradients and optimizer states lie: "none" or
    "full" (ZeRO-3), and `tensor` how many devices share each layer. `peak_bytes` is of one device. `price` is None
    without a price per device and hour. Of a step, `communication_seconds` are those of its messages and
    `update_seconds` those of the optimizer: None where they are in the MFU.
    """

    model: ModelConfig
    parameters: int
    tokens: float
    epochs: float | None
    batch_tokens: int
    learning_rate: float
    precision: str
    sharding: str
    micro_batch: int
    accumulation: int
    recompute: bool
    peak_bytes: int
    flops: float
    seconds: float
    loss: float
    loss_interval: tuple[float, float]
    kilowatt_hours: float
    price: float | None
    tensor: int = 1
    communication_seconds: float | None = None
    update_seconds: float | None = None
    assumptions: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, round(self.tokens / self.batch_tokens))

    @property
    def tokens_per_parameter(self) -> float:
        """What this plan has; at the budget's optimum it is a result of the fit, near 20 by no law."""
        return self.tokens / self.parameters


@dataclass(frozen=True)
class Budget:
    """What is given: one of `seconds`, `flops`, or `parameters` with `tokens`."""

    seconds: float | None = None
    flops: float | None = None
    parameters: float | None = None
    tokens: float | None = None
    unique_tokens: float | None = None
    mfu: float = MFU
    price_per_hour: float | None = None
    vocab_size: int | None = None
    context_length: int | None = None

    def __post_init__(self) -> None:
        ways = [self.seconds is not None, self.flops is not None, self.parameters is not None]
        if sum(ways) != 1 or (self.parameters is None) != (self.tokens is None):
            raise ValueError("plan: give one of a time, FLOPs, or parameters together with tokens")
        for name in ("seconds", "flops", "parameters", "tokens", "unique_tokens", "price_per_hour"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"plan: {name}={value}; expected a positive number")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"plan: mfu={self.mfu}; expected a share of the peak, up to 1")
        for name in ("vocab_size", "context_length"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"plan: {name}={value}; expected at least 1")


def plan_cluster(budget: Budget, cluster: Cluster) -> list[ClusterPlan]:
    """The plan of least predicted loss, then those with half and twice its parameters; only one for a given size.

    ValueError when no plan fits into the devices' memory: it says how many would do.
    """
    if budget.parameters is not None:
        assert budget.tokens is not None
        return [made(shape(budget.parameters, budget), budget.tokens, budget, cluster)]
    plans, faults = [], []
    for share in (1.0, *SIZES_BESIDE):
        try:
            plans.append(_in_time(share, budget, cluster))
        except ValueError as error:
            faults.append(error)
    if not plans:
        raise faults[0]
    return sorted(plans, key=lambda made: made.loss)


def _in_time(share: float, budget: Budget, cluster: Cluster) -> ClusterPlan:
    """The plan of this share of the optimum's size. Of a time, what messages and updates take is not for tokens."""
    total = flops_of(budget, cluster)
    for _ in range(ROUNDS):
        model = shape(share * optimum(total, EPOCH, budget.unique_tokens).parameters, budget)
        plan = made(model, total / training_flops_per_token(model, model.context_length), budget, cluster)
        if budget.seconds is None or abs(plan.seconds / budget.seconds - 1) < NEAR:
            break
        total *= budget.seconds / plan.seconds
    return plan


def flops_of(budget: Budget, cluster: Cluster) -> float:
    """Training FLOPs: given, or what the time allows, or 6 N D."""
    if budget.parameters is not None and budget.tokens is not None:
        return FLOPS_PER_PARAMETER_AND_TOKEN * budget.parameters * budget.tokens
    return budget.flops or (budget.seconds or 0.0) * cluster.peak_flops * budget.mfu


def advice(budget: Budget, cluster: Cluster) -> tuple[str, Optimum, list[str]]:
    """("compute" or "data", whichever runs out first; the fit's optimum with enough text; what follows from it)."""
    total = flops_of(budget, cluster)
    free = optimum(total, EPOCH)
    lines = [
        f"by the fit, the optimum of {total:.3g} FLOPs has {free.tokens_per_parameter:.1f} tokens per parameter: "
        "a result for this budget, not a constant"
    ]
    have = budget.unique_tokens
    if have is None or free.tokens <= have:
        return "compute", free, lines
    bound = optimum(total, EPOCH, have)
    passes = bound.tokens / have
    fresh = worth(have, passes - 1, REPEAT_WORTH) / bound.tokens
    lines.append(
        f"data runs out before compute: that optimum wants {free.tokens:.3g} tokens and there are {have:.3g}; read "
        f"them {passes:.1f} times, which teaches as much as {fresh:.0%} of so many fresh ones, with weight decay and "
        "dropout against learning by heart"
    )
    return "data", free, lines


def shape(parameters: float, budget: Budget) -> ModelConfig:
    """A Llama of about so many parameters: width over depth from 64 in small models to 128 in large ones."""
    vocab_size = budget.vocab_size or (32_000 if parameters < 3e9 else 128_000)
    context = budget.context_length or (2048 if parameters < 3e9 else 4096)
    above = bisect_left(WIDTHS, parameters, key=lambda width: _size(width, vocab_size, context))
    near = WIDTHS[max(0, above - 1) : above + 1]
    best = min(near, key=lambda width: abs(math.log(_size(width, vocab_size, context) / parameters)))
    return _llama(best, vocab_size, context)


@cache
def _size(width: int, vocab_size: int, context: int) -> int:
    """Of the whole model, from what a first and a second layer add: all layers are alike."""
    model = _llama(width, vocab_size, context)
    one, two = (count_parameters(replace(model, num_layers=layers)).total for layers in (1, 2))
    return one + (model.num_layers - 1) * (two - one)


def _llama(width: int, vocab_size: int, context: int) -> ModelConfig:
    aspect = 64 * 2 ** min(1.0, max(0.0, math.log2(width / 1024) / 2))
    d_head = D_HEAD if width % D_HEAD == 0 and width >= 1024 else 64
    heads = width // d_head
    grouped = width >= GROUPED_FROM and heads % KV_HEADS == 0
    return presets.llama(
        vocab_size=vocab_size, d_model=width, num_layers=max(2, round(width / aspect)), num_heads=heads, d_head=d_head,
        num_kv_heads=KV_HEADS if grouped else heads, context_length=context,
    )  # fmt: skip


def made(model: ModelConfig, tokens: float, budget: Budget, cluster: Cluster) -> ClusterPlan:
    """The plan of this model and so many tokens. ValueError where it does not fit into the devices' memory."""
    parameters = count_parameters(model).total
    flops = tokens * training_flops_per_token(model, model.context_length)
    batch_tokens, rate = batch_and_rate(flops, model.context_length, cluster.count)
    fit = chosen(model, batch_tokens // model.context_length, budget.mfu, cluster)
    known = fit.messages is not None
    seconds = tokens / batch_tokens * fit.seconds if known else flops / (cluster.peak_flops * budget.mfu)
    loss, other = (_loss(law, parameters, tokens, budget) for law in (EPOCH, HOFFMANN))
    hours = cluster.count * seconds / _HOUR
    return ClusterPlan(
        model=model,
        parameters=parameters,
        tokens=tokens,
        epochs=None if budget.unique_tokens is None else tokens / budget.unique_tokens,
        batch_tokens=batch_tokens,
        learning_rate=rate,
        precision="bf16" if cluster.device.bf16 else "fp16",
        sharding=fit.way.sharding,
        micro_batch=fit.micro_batch,
        accumulation=fit.passes,
        recompute=fit.recompute,
        peak_bytes=fit.peak_bytes,
        flops=flops,
        seconds=seconds,
        loss=loss,
        loss_interval=(min(loss, other), max(loss, other)),
        kilowatt_hours=hours * cluster.device.watts / 1000,
        price=None if budget.price_per_hour is None else hours * budget.price_per_hour,
        tensor=fit.way.tensor,
        communication_seconds=fit.messages,
        update_seconds=fit.update,
        assumptions=_assumptions(budget, cluster, known),
    )


def _assumptions(budget: Budget, cluster: Cluster, known: bool) -> list[str]:
    device, measured = cluster.device, cluster.measured
    rate = f"{cluster.device_flops / 1e12:,.1f} "
    rate += f"measured TFLOP/s ({measured.source})" if measured else f"dense TFLOP/s ({device.source})"
    return [
        f"an MFU of {budget.mfu:g} of {rate}",
        "of arithmetic alone: messages and the update come on top, and nothing overlaps" if known
        else "with its messages and updates, as those have that others reached",
        f"the loss law of {EPOCH.fitted_on}: web text, a vocabulary of 32,000",
        f"an interval that spans it and {HOFFMANN.fitted_on}",
        "batch and learning rate by DeepSeek-AI 2024, section 3.1 (arXiv:2401.02954), fitted to 2e19 FLOPs",
        f"{device.watts:g} W per device all the time, hosts and cooling not counted",
    ]  # fmt: skip


def batch_and_rate(flops: float, context_length: int, devices: int = 1) -> tuple[int, float]:
    """Tokens per step and AdamW's peak rate: 0.2920 C^0.3271 and 0.3118 C^-0.125.

    DeepSeek-AI 2024, eq. 1 (arXiv:2401.02954). The batch is rounded to whole rows, at least one for each device.
    """
    rows = round(0.2920 * flops**0.3271 / context_length)
    return context_length * devices * max(1, round(rows / devices)), 0.3118 * flops**-0.1250


def _loss(law: Chinchilla, parameters: float, tokens: float, budget: Budget) -> float:
    if budget.unique_tokens is None:
        return law.loss(parameters, tokens)
    return law.repeated_loss(parameters, tokens, budget.unique_tokens)
