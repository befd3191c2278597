"""Mixture of experts: many feed-forward layers, of which each token passes through a few.

    y = sum over the chosen experts e of gate_e(x) expert_e(x)  +  shared(x)

Parameters grow with the number of experts, work only with the number chosen. `router` chooses, `balance` keeps
the choice even, `kernels.grouped_matmul` multiplies.
"""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from groundup import kernels
from groundup.config import nearest
from groundup.kernels._compiler import untraced
from groundup.model import hard_choice
from groundup.model.balance import Balance, Sum, alone, load_balancing_loss, mean_over_tokens, router_z_loss
from groundup.model.feedforward import MLP, Activation, MLPConfig
from groundup.model.hard_choice import Choice, ReinforceRouter
from groundup.model.linear import truncated_normal_
from groundup.model.position import Layout
from groundup.model.router import ExpertChoiceRouter, HashRouter, Router, RouterConfig, Routing, TopKRouter


@dataclass(frozen=True)
class MoEConfig:
    """`num_experts` feed-forward layers of width `d_ff`, `top_k` of them for each token.

    num_shared       experts that every token passes through, as one layer of num_shared * d_ff (DeepSeekMoE, Dai et
                     al. 2024, arXiv:2401.06066)
    capacity_factor  room of each expert as a multiple of an even share of the batch; pairs beyond it are dropped and
                     the token goes on by the residual connection alone (Switch: 1 to 2). None drops nothing. Who is
                     dropped depends on the other rows of the batch, so even greedy decoding is then no function of
                     the prompt
    """

    num_experts: int
    top_k: int
    d_ff: int
    num_shared: int = 0
    router: RouterConfig = field(default_factory=TopKRouter)
    balance: Balance = field(default_factory=Balance)
    capacity_factor: float | None = None
    gated: bool = True
    activation: Activation = "silu"

    def __post_init__(self) -> None:
        for name, least in (("num_experts", 1), ("top_k", 1), ("d_ff", 1), ("num_shared", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"mixture of experts: {name}={getattr(self, name)}; expected at least {least}")
        if self.top_k > self.num_experts:
            raise ValueError(
                f"mixture of experts: top_k={self.top_k} is more than num_experts={self.num_experts}; "
                f"use a top_k of 1 to {self.num_experts}"
            )
        if self.capacity_factor is not None and not 0 < self.capacity_factor < math.inf:
            raise ValueError(
                f"mixture of experts: capacity_factor={self.capacity_factor}; expected a positive number, such as "
                "1.25, or None to drop nothing"
            )
        if self.capacity_factor is not None and isinstance(self.router, ReinforceRouter):
            raise ValueError(
                "mixture of experts: capacity_factor with a ReinforceRouter; one row's choice would push out another's "
                "and be blamed for nothing of it, so use capacity_factor=None"
            )
        if self.activation not in kernels.ACTIVATIONS:
            known = nearest(self.activation, kernels.ACTIVATIONS)
            raise ValueError(f"mixture of experts: activation {self.activation!r} is unknown{known}")
        self._check_router()

    def _check_router(self) -> None:
        router = self.router
        if isinstance(router, ExpertChoiceRouter | HashRouter) and self.balance != Balance():
            raise ValueError(
                "mixture of experts: balance is for routers whose tokens choose by scores, such as TopKRouter; a "
                f"{type(router).__name__} is balanced by itself, so leave it out"
            )
        if not isinstance(router, TopKRouter):
            return
        if self.num_experts % router.num_groups:
            raise ValueError(
                f"mixture of experts: num_experts={self.num_experts} does not divide into "
                f"router.num_groups={router.num_groups}; use a divisor of {self.num_experts}"
            )
        if self.top_k > (within := self.num_experts // router.num_groups * router.top_groups):
            raise ValueError(
                f"mixture of experts: top_k={self.top_k} is more than the {within} experts of "
                f"router.top_groups={router.top_groups} groups; raise top_groups or lower top_k"
            )

    @property
    def shared(self) -> MLPConfig | None:
        """The layer of the shared experts."""
        return MLPConfig(self.num_shared * self.d_ff, self.gated, self.activation) if self.num_shared else None


class GroupedLinear(nn.Module):
    """A matrix for each expert: rows sorted by expert in, W_e x out. Initialised as `num_experts` Linears."""

    def __init__(self, num_experts: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, d_out, d_in))
        self.reset_weights()

    def reset_weights(self, generator: torch.Generator | None = None, scale: float = 1.0) -> None:
        if scale == 0.0:
            nn.init.zeros_(self.weight)
        else:
            truncated_normal_(self.weight, scale * self.weight.shape[-1] ** -0.5, generator)

    def forward(self, rows: Float[Tensor, "rows d_in"], ends: Int[Tensor, " experts"]) -> Float[Tensor, "rows d_out"]:
        return kernels.grouped_matmul(rows, self.weight.to(rows.dtype), ends)

    def extra_repr(self) -> str:
        experts, d_out, d_in = self.weight.shape
        return f"{experts} x ({d_in} -> {d_out})"


class Experts(nn.Module):
    """The experts' MLPs, as stacks: row e of each stack is expert e.

    `expert_stacks` names them for expert parallelism, which sends rows to the ranks that have their experts.
    """

    expert_stacks: ClassVar[tuple[str, ...]] = ("gate", "up", "down")
    residual_outputs: ClassVar[tuple[str, ...]] = ("down",)

    def __init__(self, config: MoEConfig, d_model: int) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate = GroupedLinear(config.num_experts, d_model, config.d_ff) if config.gated else None
        self.up = GroupedLinear(config.num_experts, d_model, config.d_ff)
        self.down = GroupedLinear(config.num_experts, config.d_ff, d_model)

    def forward(
        self, rows: Float[Tensor, "rows d_model"], ends: Int[Tensor, " experts"]
    ) -> Float[Tensor, "rows d_model"]:
        if self.gate is None:
            return self.down(kernels.activate(self.up(rows, ends), self.activation), ends)
        return self.down(kernels.gated(self.gate(rows, ends), self.up(rows, ends), self.activation), ends)


class MoE(nn.Module):
    """Route, limit to capacity, dispatch, combine; add the shared experts; leave the balancing losses behind.

    The losses are over all tokens of the batch. Where other processes hold some of them, `sum_batch` is replaced from
    outside by a sum over all of those, and `sum_rows` by one over those that hold other parts of the same rows. The
    capacity is of the tokens here.
    """

    def __init__(self, config: MoEConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.router = Router(config.router, config.num_experts, config.top_k, d_model)
        self.experts = Experts(config, d_model)
        self.shared = None if config.shared is None else MLP(config.shared, d_model)
        self.sum_rows: Sum = alone
        self.sum_batch: Sum = alone

    def forward(self, x: Float[Tensor, "batch seq d_model"], layout: Layout) -> Float[Tensor, "batch seq d_model"]:
        valid = layout.positions >= 0
        flat, ids = x.flatten(0, 1), None if layout.tokens is None else layout.tokens.flatten()
        wanted = self.router(flat, valid.flatten(), ids)
        routing = self.limit(wanted, *x.shape[:2])
        self._count(wanted, routing)
        self._leave_losses(layout, wanted, valid)
        y = self.dispatch(flat, routing).view_as(x)
        return y if self.shared is None else y + self.shared(x)

    def limit(self, routing: Routing, batch: int, seq: int) -> Routing:
        """The routing without the pairs that find their expert full.

        Earlier columns of the batch come first, within a column earlier rows, within a token better choices: a token
        never loses its place to a later one. Switch goes row by row instead, where the end of one row takes the
        place of the next row's beginning.
        """
        factor = self.config.capacity_factor
        if factor is None:
            return routing
        experts, routed = self.config.num_experts, routing.experts < self.config.num_experts
        capacity = (routed.sum() * (factor / experts)).ceil()
        column_first = (routing.tokens % seq) * batch + routing.tokens // seq
        by_turn = column_first.argsort(stable=True)
        order = by_turn[routing.experts[by_turn].argsort(stable=True)]
        counts = count(routing.experts, experts + 1)
        place = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[routing.experts[order]]
        fits = torch.empty_like(routed).scatter(0, order, place < capacity)
        return replace(
            routing,
            experts=torch.where(fits, routing.experts, experts),
            gates=torch.where(fits, routing.gates, 0.0),
        )

    def dispatch(self, x: Float[Tensor, "tokens d_model"], routing: Routing) -> Float[Tensor, "tokens d_model"]:
        """Sort pairs by expert, run the experts, and add up each token's outputs by their gates, in float32."""
        order = routing.experts.argsort(stable=True)
        tokens, gates = routing.tokens[order], routing.gates[order]
        ends = count(routing.experts, self.config.num_experts + 1)[:-1].cumsum(0)
        weighted = self.experts(x[tokens], ends) * gates[:, None]
        return weighted.new_zeros(x.shape).index_add(0, tokens, weighted).to(x.dtype)

    # A compiled graph would be bound to the list's length, and so to one layer.
    @untraced
    def _leave_losses(self, layout: Layout, routing: Routing, valid: Bool[Tensor, "batch seq"]) -> None:
        if layout.auxiliary is None and layout.choices is None:
            return
        losses = [] if layout.auxiliary is None else self._losses(routing, valid)
        # Within a backward pass this is activation checkpointing running the layer again. Nobody reads the list any
        # more, and losses in it would keep alive what checkpointing is to free.
        if torch._C._current_graph_task_id() == -1:
            if layout.auxiliary is not None:
                layout.auxiliary.extend(losses)
            if layout.choices is not None and routing.log_probs is not None:
                assert isinstance(self.config.router, ReinforceRouter)
                layout.choices.append(Choice(routing.log_probs.view(valid.shape), self.config.router))

    def _losses(self, routing: Routing, valid: Bool[Tensor, "batch seq"]) -> list[Tensor]:
        """The balancing losses and the entropy's, each with its coefficient."""
        balance, losses = self.config.balance, []
        if routing.scores is None or routing.logits is None:
            return losses
        if balance.load or balance.sequence:
            choices = routing.experts.view(valid.numel(), self.config.top_k)
            chosen = torch.zeros_like(routing.scores).new_zeros(len(choices), self.config.num_experts + 1)
            chosen = chosen.scatter(1, choices, 1.0)[:, :-1]
            scores = routing.scores
            if balance.load:
                batch = (scores[None], chosen[None], valid.reshape(1, -1))
                losses.append(balance.load * load_balancing_loss(*batch, sum_rows=self.sum_batch))
            if balance.sequence:
                rows = (scores.unflatten(0, valid.shape), chosen.unflatten(0, valid.shape), valid)
                sums = {"sum_rows": self.sum_rows, "sum_batch": self.sum_batch}
                losses.append(balance.sequence * load_balancing_loss(*rows, **sums))
        if balance.z:
            losses.append(balance.z * router_z_loss(routing.logits, valid.flatten(), self.sum_batch))
        if isinstance(router := self.config.router, ReinforceRouter) and router.entropy:
            entropy = hard_choice.entropy(routing.logits)
            losses.append(-router.entropy * mean_over_tokens(entropy, valid.flatten(), self.sum_batch))
        return losses

    @torch.no_grad()
    def _count(self, wanted: Routing, routing: Routing) -> None:
        experts = self.config.num_experts
        load = count(wanted.experts, experts + 1)[:-1]
        served = (routing.experts < experts).sum()
        self.router.load.copy_(load)
        self.router.dropped.copy_(1 - served / load.sum().clamp(min=1))


def count(numbers: Int[Tensor, " pairs"], kinds: int) -> Int[Tensor, " kinds"]:
    """How often each of 0 .. kinds - 1 occurs; `bincount` with a fixed shape, so that it runs without storage."""
    return numbers.new_zeros(kinds).index_add(0, numbers, torch.ones_like(numbers))
