"""Which experts see which token: token choice by softmax or sigmoid, hard choices, expert choice, and hashing.

A router turns tokens into pairs of a token and an expert, each with a gate. Everything is computed in float32
at least: a softmax over bf16 logits rounds neighbours together, and the choice is not differentiable, so an
error there is not small. (Fedus et al. 2021, section 2.4, arXiv:2101.03961)
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from groundup.config import nearest
from groundup.model import hard_choice
from groundup.model.hard_choice import ReinforceRouter, StraightThroughRouter
from groundup.model.linear import truncated_normal_


@dataclass(frozen=True)
class TopKRouter:
    """Each token takes its `top_k` best experts.

    score        softmax over all experts (Switch, Mixtral, OLMoE, DeepSeek-V2) or a sigmoid for each (DeepSeek-V3)
    renormalise  gates of the chosen sum to one: Mixtral, DeepSeek-V3; not Switch, OLMoE, DeepSeek-V2. With top_k=1
                 a renormalised gate is constant and the router learns nothing from the task
    scale        factor on the gates ("routed scaling factor": 16 in DeepSeek-V2, 2.5 in DeepSeek-V3)
    num_groups, top_groups   experts come in num_groups equal groups and a token chooses within its best top_groups:
                 by a group's best score for softmax (DeepSeek-V2), by the sum of its two best for sigmoid (V3)
    bias_rate    step of the loss-free balancing bias (0.001 in DeepSeek-V3; 0 keeps it fixed; None: no bias). The
                 bias takes part in the choice only; gates come from scores without it
    """

    score: Literal["softmax", "sigmoid"] = "softmax"
    renormalise: bool = True
    scale: float = 1.0
    num_groups: int = 1
    top_groups: int = 1
    bias_rate: float | None = None

    def __post_init__(self) -> None:
        if self.score not in ("softmax", "sigmoid"):
            raise ValueError(f"router: score {self.score!r} is unknown{nearest(self.score, ('softmax', 'sigmoid'))}")
        if not 1 <= self.top_groups <= self.num_groups:
            raise ValueError(
                f"router: top_groups={self.top_groups} of num_groups={self.num_groups}; expected at least 1 and no "
                "more than there are groups"
            )
        if self.bias_rate is not None and self.bias_rate < 0:
            raise ValueError(f"router: bias_rate={self.bias_rate}; expected at least 0, such as 0.001, or None")


@dataclass(frozen=True)
class ExpertChoiceRouter:
    """Each expert takes its best tokens, as many as make `top_k` experts per token on average.

    Loads are equal by construction. But whether a token is taken depends on all tokens of the batch, later ones
    included: a model that predicts the next token can read the future from it in training, and does something else
    when it decodes one token at a time. Zhou et al. 2022, section 3.2 (arXiv:2202.09368).
    """


@dataclass(frozen=True)
class HashRouter:
    """A fixed function of the token id chooses; each of the `top_k` experts gets the gate 1 / top_k.

    Nothing is learned, so nothing collapses: the yardstick for learned routers. Other seeds send other tokens to
    the same expert. Roller et al. 2021 (arXiv:2106.04426), with a random hash.
    """

    seed: int = 0


RouterConfig = TopKRouter | StraightThroughRouter | ReinforceRouter | ExpertChoiceRouter | HashRouter


@dataclass(frozen=True)
class Routing:
    """Pairs of token and expert; expert number `num_experts` is nobody (padding, and what does not fit).

    `scores` sum to one for each token, for balancing losses; None where nothing is learned from them. `log_probs` are
    those of choices that were sampled.
    """

    tokens: Int[Tensor, " pairs"]
    experts: Int[Tensor, " pairs"]
    gates: Float[Tensor, " pairs"]
    logits: Float[Tensor, "tokens experts"] | None = None
    scores: Float[Tensor, "tokens experts"] | None = None
    log_probs: Float[Tensor, " tokens"] | None = None


class Router(nn.Module):
    """What every router has: counters, and the weight and bias of those that have them.

    `load` is the number of tokens that chose each expert in the latest forward pass, before anything was dropped,
    and `dropped` the share of pairs that were. Each pass overwrites them, so that a recomputation under activation
    checkpointing counts nothing twice. `step_load` is the trainer's sum of `load` over a step (see `balance`).
    """

    load: Tensor
    step_load: Tensor
    dropped: Tensor
    bias: Tensor | None

    def __init__(self, config: RouterConfig, num_experts: int, top_k: int, d_model: int) -> None:
        super().__init__()
        self.config, self.num_experts, self.top_k = config, num_experts, top_k
        learned = not isinstance(config, HashRouter)
        self.weight = nn.Parameter(torch.empty(num_experts, d_model)) if learned else None
        biased = isinstance(config, TopKRouter) and config.bias_rate is not None
        self.register_buffer("bias", torch.empty(num_experts) if biased else None)
        for name, shape in (("load", (num_experts,)), ("step_load", (num_experts,)), ("dropped", ())):
            self.register_buffer(name, torch.empty(shape), persistent=False)
        self.reset_weights()

    def reset_weights(self, generator: torch.Generator | None = None, scale: float = 1.0) -> None:
        if self.weight is not None:
            truncated_normal_(self.weight, scale * self.weight.shape[1] ** -0.5, generator)
        for buffer in self.buffers():
            nn.init.zeros_(buffer)

    def forward(
        self,
        x: Float[Tensor, "tokens d_model"],
        valid: Bool[Tensor, " tokens"],
        ids: Int[Tensor, " tokens"] | None = None,
    ) -> Routing:
        """The pairs; a token that is not valid (padding) is in none. `ids` are read by hashing alone."""
        match self.config:
            case TopKRouter():
                return self._token_choice(self.config, self._logits(x), valid)
            case StraightThroughRouter():
                return self._straight_through(self.config, self._logits(x), valid)
            case ReinforceRouter():
                return self._reinforce(self._logits(x), valid)
            case ExpertChoiceRouter():
                return self._expert_choice(self._logits(x).softmax(-1), valid)
            case HashRouter():
                return self._hash(self.config, ids, valid)

    def _logits(self, x: Float[Tensor, "tokens d_model"]) -> Float[Tensor, "tokens experts"]:
        assert self.weight is not None
        work = torch.promote_types(x.dtype, torch.float32)
        return F.linear(x.to(work), self.weight.to(work))

    def _token_choice(
        self, config: TopKRouter, logits: Float[Tensor, "tokens experts"], valid: Bool[Tensor, " tokens"]
    ) -> Routing:
        scores = logits.softmax(-1) if config.score == "softmax" else logits.sigmoid()
        chosen = choose(scores, self.top_k, config, self.bias)
        gates = config.scale * _gates(config, logits, scores, chosen)
        if config.score == "sigmoid":
            scores = scores / (scores.sum(-1, keepdim=True) + 1e-20)
        return self._pairs(chosen, gates, valid, logits, scores)

    def _straight_through(
        self, config: StraightThroughRouter, logits: Float[Tensor, "tokens experts"], valid: Bool[Tensor, " tokens"]
    ) -> Routing:
        ranked = logits + hard_choice.gumbel_noise(logits) if config.gumbel and self.training else logits
        chosen = ranked.topk(self.top_k).indices
        gates = hard_choice.straight_through_gates((ranked / config.temperature).softmax(-1), chosen)
        return self._pairs(chosen, gates, valid, logits, logits.softmax(-1))

    def _reinforce(self, logits: Float[Tensor, "tokens experts"], valid: Bool[Tensor, " tokens"]) -> Routing:
        chosen = hard_choice.sample(logits, self.top_k) if self.training else logits.topk(self.top_k).indices
        gates = torch.full(chosen.shape, 1 / self.top_k, dtype=logits.dtype, device=logits.device)
        routing = self._pairs(chosen, gates, valid, logits, logits.softmax(-1))
        if not self.training:
            return routing
        return replace(routing, log_probs=torch.where(valid, hard_choice.log_prob(logits, chosen), 0.0))

    def _expert_choice(self, scores: Float[Tensor, "tokens experts"], valid: Bool[Tensor, " tokens"]) -> Routing:
        tokens, share = valid.shape[0], self.top_k / self.num_experts
        candidates = scores.masked_fill(~valid[:, None], -1.0).mT
        gates, taken = candidates.topk(-int(-tokens * share // 1), sorted=True)  # (experts, room)
        room = (valid.sum() * share).ceil()
        kept = (torch.arange(gates.shape[1], device=valid.device) < room) & (gates >= 0)
        expert = torch.arange(self.num_experts, device=valid.device)[:, None].expand_as(taken)
        experts = torch.where(kept, expert, self.num_experts)
        return Routing(taken.flatten(), experts.flatten(), (gates * kept).flatten())

    def _hash(self, config: HashRouter, ids: Int[Tensor, " tokens"] | None, valid: Bool[Tensor, " tokens"]) -> Routing:
        assert ids is not None, "hash routing reads token ids, and this layout has none"
        # Multiplicative hashing: the high bits of a product with an odd constant near 2^32 / golden ratio.
        mixed = ((ids + config.seed) * 2654435761 % 2**32) >> 12
        chosen = (mixed[:, None] + torch.arange(self.top_k, device=ids.device)) % self.num_experts
        gates = torch.full(chosen.shape, 1 / self.top_k, device=ids.device)
        return self._pairs(chosen, gates, valid)

    def _pairs(self, chosen: Tensor, gates: Tensor, valid: Tensor, *scores: Tensor) -> Routing:
        tokens = torch.arange(len(valid), device=valid.device).repeat_interleave(self.top_k)
        experts = torch.where(valid[:, None], chosen, self.num_experts)
        gates = torch.where(valid[:, None], gates, 0.0)
        return Routing(tokens, experts.flatten(), gates.flatten(), *scores)

    def extra_repr(self) -> str:
        return f"{self.top_k} of {self.num_experts}, {self.config}"


def choose(
    scores: Float[Tensor, "tokens experts"], top_k: int, config: TopKRouter, bias: Float[Tensor, " experts"] | None
) -> Int[Tensor, "tokens top_k"]:
    """The experts of each token: best scores plus bias, within its best groups. No gradient passes here."""
    ranked = scores.detach() if bias is None else scores.detach() + bias
    if config.num_groups > 1:
        groups = ranked.unflatten(-1, (config.num_groups, -1))
        best = min(1 if config.score == "softmax" else 2, groups.shape[-1])
        kept = groups.topk(best).values.sum(-1).topk(config.top_groups).indices
        outside = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter(-1, kept, False)
        ranked = groups.masked_fill(outside[..., None], -torch.inf).flatten(-2)
    return ranked.topk(top_k).indices


def _gates(config: TopKRouter, logits: Tensor, scores: Tensor, chosen: Tensor) -> Float[Tensor, "tokens top_k"]:
    if not config.renormalise:
        return scores.gather(-1, chosen)
    if config.score == "softmax":  # p_i / sum of chosen p, without dividing numbers that may have underflowed
        return logits.gather(-1, chosen).softmax(-1)
    gates = scores.gather(-1, chosen)
    return gates / (gates.sum(-1, keepdim=True) + 1e-20)
