"""Multi-token prediction: small modules that predict the tokens after the next, in order.

    h^k_i = Block_k(W_k [norm(h^(k-1)_i) ; norm(embed(t_(i+k)))])        predicts t_(i+k+1) by the model's own head

DeepSeek-V3, section 2.2 (arXiv:2412.19437). Training gains a denser signal; at inference the modules are thrown away,
or used as the drafter of speculative decoding. They share the model's embedding and head.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from groundup.model.block import Block, BlockConfig
from groundup.model.cache import Cache, NoCache
from groundup.model.linear import Linear
from groundup.model.norm import build_norm
from groundup.model.position import Layout


@dataclass(frozen=True)
class MultiTokenConfig:
    """`depth` further tokens are predicted (1 in DeepSeek-V3); their mean loss counts `weight` (0.3, later 0.1)."""

    depth: int = 1
    weight: float = 0.3

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"multi-token prediction: depth={self.depth}; expected at least 1, or no config at all")
        if self.weight < 0:
            raise ValueError(f"multi-token prediction: weight={self.weight}; expected at least 0, such as 0.3")


class FurtherToken(nn.Module):
    """One depth: the state before and the embedding of the next known token, through one block."""

    def __init__(self, block: BlockConfig, d_model: int, norm_eps: float, norm_bias: bool) -> None:
        super().__init__()
        self.hidden_norm = build_norm(block.norm, d_model, norm_eps, norm_bias)
        self.token_norm = build_norm(block.norm, d_model, norm_eps, norm_bias)
        self.combine = Linear(2 * d_model, d_model)
        self.block = Block(block, d_model, norm_eps, norm_bias)
        self.final_norm = build_norm(block.norm, d_model, norm_eps, norm_bias)

    def forward(
        self,
        hidden: Float[Tensor, "batch seq d_model"],
        tokens: Float[Tensor, "batch seq d_model"],
        layout: Layout,
        cache: Cache,
    ) -> tuple[Float[Tensor, "batch seq d_model"], Float[Tensor, "batch seq d_model"]]:
        """(the next depth's `hidden`, what the head reads of it), from this depth's and the embeddings of the tokens
        that it is told."""
        both = torch.cat([self.hidden_norm(hidden), self.token_norm(tokens)], -1)
        hidden = self.block(self.combine(both), layout, cache)
        return hidden, self.final_norm(hidden)


class MultiToken(nn.Module):
    """The modules of all depths. Each has the form of the model's last block."""

    def __init__(
        self, config: MultiTokenConfig, block: BlockConfig, d_model: int, norm_eps: float, norm_bias: bool
    ) -> None:
        super().__init__()
        self.config = config
        self.depths = nn.ModuleList(FurtherToken(block, d_model, norm_eps, norm_bias) for _ in range(config.depth))

    def forward(
        self,
        model: Any,
        hidden: Float[Tensor, "batch seq d_model"],
        following: Int[Tensor, "batch following"],
        positions: Int[Tensor, "batch seq"] | None = None,
        segments: Int[Tensor, "batch seq"] | None = None,
        auxiliary: list[Tensor] | None = None,
    ) -> list[Float[Tensor, "batch _ d_model"]]:
        """States for `model.logits`, one per depth k = 1 .. depth, the k-th for predicting token i + k + 1.

        `hidden` is what `model.hidden` gave for tokens 0 .. seq - 1, `following` the tokens 1, 2, ... of which
        depth k needs up to the last but k - 1; a state exists where its token is known.
        """
        states = []
        for k, depth in enumerate(self.depths):
            assert isinstance(depth, FurtherToken)
            known = following[:, k:]
            seq = min(hidden.shape[1], known.shape[1])
            known = known[:, :seq]
            layout = model.layout(
                known,
                None if positions is None else positions[:, :seq],
                segments=None if segments is None else segments[:, :seq],
            )
            layout = replace(layout, auxiliary=auxiliary)
            hidden, state = depth(hidden[:, :seq], model.embed_tokens(known, layout), layout, NoCache())
            states.append(state)
        return states


@torch.no_grad()
def draft(model: Any, tokens: Int[Tensor, "batch seq"]) -> Int[Tensor, "batch drafted"]:
    """The greedy next token of each row, then `depth` guesses of those after it by the multi-token modules.

    Prefixes have no padding. The modules read the whole prefix again, without a cache.
    """
    hidden = model.hidden(tokens)
    drafted = [model.logits(hidden[:, -1]).argmax(-1)]
    for _ in range(model.multi_token.config.depth):
        following = torch.cat([tokens[:, 1:], torch.stack(drafted, 1)], 1)
        states = model.multi_token(model, hidden, following)
        drafted.append(model.logits(states[len(drafted) - 1][:, -1]).argmax(-1))
    return torch.stack(drafted, 1)


@torch.no_grad()
def acceptance_rate(model: Any, prompt: Int[Tensor, "batch seq"], count: int) -> list[float]:
    """The share of drafted tokens, by depth, that greedy decoding would have chosen itself.

    The model continues the prompt by `count` greedy tokens; at every place of that text the modules' guesses are
    compared with what stands there. Depth k counts only where the depths before it were right: what is behind a
    refused token is thrown away (Leviathan et al. 2022, arXiv:2211.17192).
    """
    if count <= (depth := model.multi_token.config.depth):
        raise ValueError(f"acceptance_rate: count={count}; expected more than the {depth + 1} tokens of one draft")
    text = prompt
    for _ in range(count):
        text = torch.cat([text, model(text)[:, -1:].argmax(-1)], 1)
    start, hidden = prompt.shape[1], model.hidden(text)
    right = torch.ones_like(text[:, start - 1 :], dtype=torch.bool)
    rates = []
    for k, state in enumerate(model.multi_token(model, hidden, text[:, 1:]), 1):
        guesses, actual = model.logits(state[:, start - 1 : -1]).argmax(-1), text[:, start + k :]
        right = right[:, : actual.shape[1]] & (guesses == actual)
        rates.append(right.float().mean().item())
    return rates
