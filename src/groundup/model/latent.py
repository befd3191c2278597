"""Multi-head latent attention: keys and values of all heads are made from one small vector per token.

That vector, the latent, is all that the cache keeps, with one rotary key for all heads. Two ways of computing the same
thing: expand the latents to keys and values (training), or move that expansion over to the queries and outputs, so
that every head attends to the latents themselves (decoding).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from groundup import kernels
from groundup.model.cache import Cache
from groundup.model.linear import Linear
from groundup.model.norm import RMSNorm
from groundup.model.position import Layout, Rope


@dataclass(frozen=True)
class LatentAttentionConfig:
    """`kv_rank` is the latent's size, `q_rank` that of the queries' own latent (None: full-rank queries).

    Each head's queries and keys have `d_nope` channels without and `d_rope` with a rotary embedding, its values
    `d_value`. The cache keeps kv_rank + d_rope numbers per token, however many heads there are. `scale` of the scores
    is 1 / sqrt(d_nope + d_rope) by default.
    """

    num_heads: int
    kv_rank: int
    d_nope: int
    d_rope: int
    d_value: int
    q_rank: int | None = None
    rope: Rope = Rope()
    scale: float | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_heads", "kv_rank", "d_nope", "d_rope", "d_value"):
            if getattr(self, name) < 1:
                raise ValueError(f"latent attention: {name}={getattr(self, name)}; expected at least 1")
        for name in ("q_rank", "window"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise ValueError(f"latent attention: {name}={given}; expected at least 1, or None")
        if self.scale is not None and self.scale <= 0:
            raise ValueError(f"latent attention: scale={self.scale}; expected a positive number, or None")
        self.rope.check(self.d_rope, "latent attention: d_rope")

    @property
    def rotary(self) -> list[tuple[Rope, int]]:
        """As `AttentionConfig.rotary`."""
        return [(self.rope, self.d_rope)]


class LatentAttention(nn.Module):
    r"""c = norm(W_dkv x) is the latent, k_r = rope(W_kr x) the shared key; per head h:

        k_h = [W_uk_h c; k_r],   v_h = W_uv_h c,   q_h = [q_nope_h; rope(q_rope_h)],

    and attention as ever. As q_nope_h . W_uk_h c = (W_uk_h^T q_nope_h) . c, and the mean of values is W_uv_h times
    the mean of latents, decoding needs neither keys nor values: `_absorbed`.

    DeepSeek-V2, section 2.1 (arXiv:2405.04434). There W_dkv and W_kr are one matrix, as are W_uk and W_uv; here the
    rotary key's is apart, because tensor parallelism has to sum its gradient. Half-split rotary channels, where
    DeepSeek's files interleave the pairs.
    """

    shard: ClassVar[dict[str, str]] = {"wq": "col", "wq_up": "col", "wk_rope": "shared", "wkv_up": "col", "wo": "row"}
    residual_outputs: ClassVar[tuple[str, ...]] = ("wo",)
    read_as_matrix: ClassVar[tuple[str, ...]] = ("wkv_up",)

    def __init__(self, config: LatentAttentionConfig, d_model: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.config = config
        self.attend: Callable[..., Tensor] = kernels.attention
        d_qk, d_kv = config.d_nope + config.d_rope, config.d_nope + config.d_value
        self.head_widths = {"wq": d_qk, "wq_up": d_qk, "wkv_up": d_kv, "wo": config.d_value}
        self.wq = self.wq_down = self.wq_up = self.q_norm = None
        if config.q_rank is None:
            self.wq = Linear(d_model, config.num_heads * d_qk)
        else:
            self.wq_down = Linear(d_model, config.q_rank)
            self.q_norm = RMSNorm(config.q_rank, norm_eps)
            self.wq_up = Linear(config.q_rank, config.num_heads * d_qk)
        self.wkv_down = Linear(d_model, config.kv_rank)
        self.kv_norm = RMSNorm(config.kv_rank, norm_eps)
        self.wk_rope = Linear(d_model, config.d_rope)
        self.wkv_up = Linear(config.kv_rank, config.num_heads * d_kv)
        self.wo = Linear(config.num_heads * config.d_value, d_model)

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], layout: Layout, cache: Cache
    ) -> Float[Tensor, "batch seq d_model"]:
        config = self.config
        q_nope, q_rope = self._queries(x).split([config.d_nope, config.d_rope], -1)
        q_rope = layout.rotate(q_rope, config.rope)
        k_rope = layout.rotate(self.wk_rope(x)[:, :, None], config.rope)
        remembered = cache.append(layout.positions, self.kv_norm(self.wkv_down(x)), k_rope[:, :, 0])
        k_pos, latent, k_rope = remembered
        attend = self._absorbed if self.absorbs(x.shape[1], latent.shape[1]) else self._expanded
        return self.wo(attend(q_nope, q_rope, latent, k_rope, k_pos, layout).flatten(2))

    def absorbs(self, q_seq: int, k_seq: int) -> bool:
        """Whether attending to latents takes fewer multiplications than making keys and values of all of them."""
        config = self.config
        if k_seq == q_seq:
            return False  # training and prefill: the plain form, which has a fused kernel
        pair = config.d_nope + config.d_rope + config.d_value
        expanded = k_seq * (config.kv_rank * (config.d_nope + config.d_value) + q_seq * pair)
        absorbed = q_seq * (
            config.kv_rank * (config.d_nope + config.d_value) + k_seq * (2 * config.kv_rank + config.d_rope)
        )
        return absorbed < expanded

    def _queries(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq heads d_qk"]:
        if self.wq is not None:
            q = self.wq(x)
        else:
            assert self.wq_down is not None and self.q_norm is not None and self.wq_up is not None
            q = self.wq_up(self.q_norm(self.wq_down(x)))
        return q.unflatten(-1, (-1, self.config.d_nope + self.config.d_rope))

    def _expanded(
        self,
        q_nope: Float[Tensor, "batch q_seq heads d_nope"],
        q_rope: Float[Tensor, "batch q_seq heads d_rope"],
        latent: Float[Tensor, "batch k_seq kv_rank"],
        k_rope: Float[Tensor, "batch k_seq d_rope"],
        k_pos: Int[Tensor, "batch k_seq"],
        layout: Layout,
    ) -> Float[Tensor, "batch q_seq heads d_value"]:
        heads = q_nope.shape[2]
        kv = self.wkv_up(latent).unflatten(-1, (heads, -1))
        k_nope, v = kv.split([self.config.d_nope, self.config.d_value], -1)
        k = torch.cat([k_nope, k_rope[:, :, None].expand(-1, -1, heads, -1)], -1)
        return self._attend(torch.cat([q_nope, q_rope], -1), k, v, k_pos, layout)

    def _absorbed(
        self,
        q_nope: Float[Tensor, "batch q_seq heads d_nope"],
        q_rope: Float[Tensor, "batch q_seq heads d_rope"],
        latent: Float[Tensor, "batch k_seq kv_rank"],
        k_rope: Float[Tensor, "batch k_seq d_rope"],
        k_pos: Int[Tensor, "batch k_seq"],
        layout: Layout,
    ) -> Float[Tensor, "batch q_seq heads d_value"]:
        """Multi-query attention with the latent as key and value."""
        config = self.config
        up = self.wkv_up.weight.to(latent.dtype).unflatten(0, (-1, config.d_nope + config.d_value))
        w_uk, w_uv = up.split([config.d_nope, config.d_value], 1)
        q_latent = torch.einsum("bqhn,hnr->bqhr", q_nope, w_uk)
        q, k = torch.cat([q_latent, q_rope], -1), torch.cat([latent, k_rope], -1)[:, :, None]
        mean = self._attend(q, k, latent[:, :, None], k_pos, layout)
        return torch.einsum("bqhr,hvr->bqhv", mean, w_uv)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, k_pos: Tensor, layout: Layout) -> Tensor:
        scale = self.config.scale or (self.config.d_nope + self.config.d_rope) ** -0.5
        return self.attend(
            q, k, v, layout.positions, k_pos,
            window=self.config.window, q_segments=layout.segments, k_segments=layout.segments,
            scale=scale, causal_from_zero=layout.causal_from_zero,
        )  # fmt: skip
