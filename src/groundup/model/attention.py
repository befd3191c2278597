"""Multi-head, multi-query and grouped-query attention, windows, sinks, ALiBi, QK-norm, soft cap: one code path."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from groundup import kernels
from groundup.model.cache import Cache, NoCache
from groundup.model.linear import Linear
from groundup.model.norm import RMSNorm
from groundup.model.position import Layout, Rope

SHARD = {
    "wq": "col", "wk": "col", "wv": "col", "wo": "row", "q_norm": "partial", "k_norm": "partial",
    "sinks": "heads", "slopes": "heads",
}  # fmt: skip


@dataclass(frozen=True)
class AttentionConfig:
    """num_kv_heads = num_heads is multi-head attention, 1 multi-query, between them grouped-query.

    `window` w: a token sees itself and the w - 1 before it; `sink_tokens` n: and the first n of its document.
    `sinks`: a learned score per head that takes its share of the softmax. `alibi`: scores fall with distance, by a
    slope per head, in place of a position embedding. `qk_norm`: RMSNorm on every query and key head; "whole": on all
    heads' channels together (OLMo 2). `softcap` c: scores become c * tanh(score / c). `scale` of the scores is
    1 / sqrt(d_head) by default. `bias` is on wq, wk, wv; `out_bias` on wo.
    `causal=False` is an encoder's: a token sees those after it, too, and a window reaches to both sides. No cache can
    hold such a layer, so its model cannot generate.
    """

    num_heads: int
    num_kv_heads: int
    d_head: int
    rope: Rope | None = Rope()
    window: int | None = None
    qk_norm: bool | Literal["whole"] = False
    bias: bool = False
    out_bias: bool = False
    softcap: float | None = None
    scale: float | None = None
    sink_tokens: int = 0
    sinks: bool = False
    alibi: bool = False
    causal: bool = True

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_kv_heads", "d_head"):
            if getattr(self, name) < 1:
                raise ValueError(f"attention: {name}={getattr(self, name)}; expected at least 1")
        if self.num_heads % self.num_kv_heads:
            allowed = [n for n in range(1, self.num_heads + 1) if self.num_heads % n == 0]
            closest = min(allowed, key=lambda n: abs(n - self.num_kv_heads))
            raise ValueError(
                f"attention: num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}, "
                f"and each key/value head serves the same number of query heads; allowed are "
                f"{', '.join(map(str, allowed))} (nearest: {closest})"
            )
        if not isinstance(self.qk_norm, bool) and self.qk_norm != "whole":
            raise ValueError(f"attention: qk_norm={self.qk_norm!r}; expected True, False or 'whole'")
        if self.alibi and self.rope is not None:
            raise ValueError("attention: alibi stands in place of a rotary embedding; give rope=None beside it")
        if self.rope is not None:
            self.rope.check(self.d_head, "attention: d_head", " or rope=None")
        if self.window is not None and self.window < 1:
            raise ValueError(f"attention: window={self.window}; expected at least 1, or None for no window")
        if self.sink_tokens < 0 or (self.sink_tokens and self.window is None):
            raise ValueError(
                f"attention: sink_tokens={self.sink_tokens}, window={self.window}; expected 0, or more beside a window"
            )
        if self.sink_tokens and not self.causal:
            raise ValueError(
                f"attention: sink_tokens={self.sink_tokens} with causal=False; they keep in sight what a long text "
                "has left behind, and an encoder reads its text at once: give sink_tokens=0"
            )
        for name in ("softcap", "scale"):
            if (given := getattr(self, name)) is not None and given <= 0:
                raise ValueError(f"attention: {name}={given}; expected a positive number, or None")

    @property
    def rotary(self) -> list[tuple[Rope, int]]:
        """The rotary embeddings that this mixer asks `Layout.tables` for, each with its number of channels."""
        return [] if self.rope is None else [(self.rope, self.d_head)]


class Attention(nn.Module):
    """Self-attention, causal unless its config says otherwise.

    Head counts are read from the weights, so a slice of heads runs unchanged.
    `shard` tells tensor parallelism how to cut, see `parallel.tensor`. A norm over all heads' channels needs all of
    them on one rank, so with it nothing is cut. `attend` is what context parallelism replaces, as it has to fetch the
    keys of other ranks.
    """

    shard: dict[str, str]
    residual_outputs: ClassVar[tuple[str, ...]] = ("wo",)

    def __init__(self, config: AttentionConfig, d_model: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.config = config
        self.attend: Callable[..., Tensor] = kernels.attention
        whole = config.qk_norm == "whole"
        self.shard = {} if whole else SHARD
        d_q, d_kv = config.num_heads * config.d_head, config.num_kv_heads * config.d_head
        self.wq = Linear(d_model, d_q, config.bias)
        self.wk = Linear(d_model, d_kv, config.bias)
        self.wv = Linear(d_model, d_kv, config.bias)
        self.wo = Linear(d_q, d_model, config.out_bias)
        self.q_norm = RMSNorm(d_q if whole else config.d_head, norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(d_kv if whole else config.d_head, norm_eps) if config.qk_norm else nn.Identity()
        self.sinks = Sinks(config.num_heads) if config.sinks else None
        self.slopes = Slopes(config.num_heads) if config.alibi else None

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], layout: Layout, cache: Cache
    ) -> Float[Tensor, "batch seq d_model"]:
        config = self.config
        q, k, v = self.wq(x), self.wk(x), self.wv(x)
        if config.qk_norm == "whole":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.unflatten(-1, (-1, config.d_head)) for y in (q, k, v))
        if config.qk_norm is True:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = layout.rotate(q, config.rope), layout.rotate(k, config.rope)
        if config.causal:
            k_pos, k, v = cache.append(layout.positions, k, v)
        else:
            refuse_cache(cache)
            k_pos = layout.positions
        attend = getattr(cache, "attend", self.attend)
        out = attend(
            q, k, v, layout.positions, k_pos,
            causal=config.causal, window=config.window, sink_tokens=config.sink_tokens,
            q_segments=layout.segments, k_segments=layout.segments, softcap=config.softcap, scale=config.scale,
            sinks=None if self.sinks is None else self.sinks.weight,
            slopes=None if self.slopes is None else self.slopes.on(x.device),
            causal_from_zero=layout.causal_from_zero,
        )  # fmt: skip
        return self.wo(out.flatten(2))


def refuse_cache(cache: Cache) -> None:
    """ValueError for a cache that would remember what a bidirectional layer made of its tokens."""
    if not isinstance(cache, NoCache):
        raise ValueError(
            "attention with causal=False was given a cache, yet each new token changes what the tokens before it give, "
            "so nothing can be kept; run the whole text without caches, or build the model with causal=True"
        )


class Sinks(nn.Module):
    """A learned score per head for attending to nothing; zero at first, as much as one key of score zero."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads))

    def reset_weights(self, generator: torch.Generator | None = None, scale: float = 1.0) -> None:
        nn.init.zeros_(self.weight)


class Slopes(nn.Module):
    """ALiBi's slopes, which are fixed: no parameters, and no buffer that a checkpoint would have to hold."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.values = alibi_slopes(num_heads)

    def on(self, device: torch.device) -> Float[Tensor, " heads"]:
        return torch.tensor(self.values, device=device)


def alibi_slopes(num_heads: int) -> list[float]:
    """The slope of each head: 2^(-8 i / heads) for i = 1 .. heads.

    Press et al. 2021, section 3 (arXiv:2108.12409), for a power of two; other counts of heads take the slopes of the
    power below, and then every other one of twice as many heads, as the authors' code does.

    >>> alibi_slopes(2), alibi_slopes(3)
    ([0.0625, 0.00390625], [0.0625, 0.00390625, 0.25])
    """
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    between = [2 ** (-8 * i / (2 * power)) for i in range(1, 2 * power + 1, 2)]
    return slopes + between[: num_heads - power]
