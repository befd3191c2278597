"""Multi-head, multi-query, grouped-query and sliding-window attention: one code path."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from groundup import kernels
from groundup.model.cache import Cache
from groundup.model.linear import Linear
from groundup.model.norm import RMSNorm
from groundup.model.position import Layout, Rope


@dataclass(frozen=True)
class AttentionConfig:
    """num_kv_heads = num_heads is multi-head attention, 1 multi-query, between them grouped-query.

    `window` w: a token sees itself and the w - 1 before it. `qk_norm`: RMSNorm on every query and key
    head. `softcap` c: scores become c * tanh(score / c). `bias` is on wq, wk, wv; `out_bias` on wo.
    """

    num_heads: int
    num_kv_heads: int
    d_head: int
    rope: Rope | None = Rope()
    window: int | None = None
    qk_norm: bool = False
    bias: bool = False
    out_bias: bool = False
    softcap: float | None = None

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
        if self.rope is not None and self.d_head % 2:
            raise ValueError(
                f"attention: d_head={self.d_head} is odd, and a rotary embedding turns channels in pairs; "
                f"use {self.d_head - 1 or 2} or {self.d_head + 1}, or rope=None"
            )
        if self.window is not None and self.window < 1:
            raise ValueError(f"attention: window={self.window}; expected at least 1, or None for no window")
        if self.softcap is not None and self.softcap <= 0:
            raise ValueError(f"attention: softcap={self.softcap}; expected a positive number, or None")

    @property
    def rotary(self) -> list[tuple[Rope, int]]:
        """The rotary embeddings that this mixer asks `Layout.tables` for, each with its number of channels."""
        return [] if self.rope is None else [(self.rope, self.d_head)]


class Attention(nn.Module):
    """Causal self-attention. Head counts are read from the weights, so a slice of heads runs unchanged.

    `shard` tells tensor parallelism how to cut: `col` by output rows, `row` by input columns with the
    outputs summed, `partial` for a replicated weight that sees only this rank's heads, so that its
    gradient is a sum over ranks.
    """

    shard: ClassVar[dict[str, str]] = {
        "wq": "col", "wk": "col", "wv": "col", "wo": "row", "q_norm": "partial", "k_norm": "partial",
    }  # fmt: skip
    residual_outputs: ClassVar[tuple[str, ...]] = ("wo",)

    def __init__(self, config: AttentionConfig, d_model: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.config = config
        d_q, d_kv = config.num_heads * config.d_head, config.num_kv_heads * config.d_head
        self.wq = Linear(d_model, d_q, config.bias)
        self.wk = Linear(d_model, d_kv, config.bias)
        self.wv = Linear(d_model, d_kv, config.bias)
        self.wo = Linear(d_q, d_model, config.out_bias)
        self.q_norm = RMSNorm(config.d_head, norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.d_head, norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], layout: Layout, cache: Cache
    ) -> Float[Tensor, "batch seq d_model"]:
        config = self.config
        q, k, v = (w(x).unflatten(-1, (-1, config.d_head)) for w in (self.wq, self.wk, self.wv))
        q = layout.rotate(self.q_norm(q), config.rope)
        k = layout.rotate(self.k_norm(k), config.rope)
        k_pos, k, v = cache.append(layout.positions, k, v)
        out = kernels.attention(
            q, k, v, layout.positions, k_pos,
            window=config.window, q_segments=layout.segments, k_segments=layout.segments,
            softcap=config.softcap, causal_from_zero=layout.causal_from_zero,
        )  # fmt: skip
        return self.wo(out.flatten(2))
