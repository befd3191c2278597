"""Attention from one text to another: queries of a decoder's tokens, keys and values of what an encoder made."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from groundup import kernels
from groundup.model.attention import AttentionConfig
from groundup.model.linear import Linear
from groundup.model.norm import RMSNorm
from groundup.model.position import Layout


@dataclass(frozen=True)
class CrossAttentionConfig:
    """The fields of `AttentionConfig` that have a meaning between two texts, which share no positions and no order."""

    num_heads: int
    num_kv_heads: int
    d_head: int
    qk_norm: bool = False
    bias: bool = False
    out_bias: bool = False
    softcap: float | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        try:
            AttentionConfig(
                self.num_heads, self.num_kv_heads, self.d_head, rope=None, softcap=self.softcap, scale=self.scale
            )
        except ValueError as error:
            raise ValueError(f"cross-{error}") from error


class Memory(NamedTuple):
    """What one decoder layer needs of a source: made once, and read at every step of decoding.

    `positions` are -1 at padding, which no query sees; `is_whole` promises that there is none. `segments` number
    the pairs of texts packed into a row.
    """

    keys: Float[Tensor, "batch source kv_heads d_head"]
    values: Float[Tensor, "batch source kv_heads d_head"]
    positions: Int[Tensor, "batch source"]
    segments: Int[Tensor, "batch source"] | None
    is_whole: bool


class CrossAttention(nn.Module):
    """Every token of the decoder sees every token of the source. Head counts are read from the weights.

    Vaswani et al. 2017, section 3.2.3 (arXiv:1706.03762).
    """

    shard: ClassVar[dict[str, str]] = {
        "wq": "col", "wk": "col", "wv": "col", "wo": "row", "q_norm": "partial", "k_norm": "partial",
    }  # fmt: skip
    residual_outputs: ClassVar[tuple[str, ...]] = ("wo",)

    def __init__(self, config: CrossAttentionConfig, d_model: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.config = config
        d_q, d_kv = config.num_heads * config.d_head, config.num_kv_heads * config.d_head
        self.wq = Linear(d_model, d_q, config.bias)
        self.wk = Linear(d_model, d_kv, config.bias)
        self.wv = Linear(d_model, d_kv, config.bias)
        self.wo = Linear(d_q, d_model, config.out_bias)
        self.q_norm = RMSNorm(config.d_head, norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.d_head, norm_eps) if config.qk_norm else nn.Identity()

    def remember(self, encoded: Float[Tensor, "batch source d_model"], layout: Layout) -> Memory:
        """Keys and values of the encoder's output; `layout` is the encoder's."""
        k, v = (y.unflatten(-1, (-1, self.config.d_head)) for y in (self.wk(encoded), self.wv(encoded)))
        return Memory(self.k_norm(k), v, layout.positions, layout.segments, layout.causal_from_zero)

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], layout: Layout, memory: Memory | None
    ) -> Float[Tensor, "batch seq d_model"]:
        if memory is None:
            raise ValueError(
                "this model's blocks attend to a source (cross), and none was given; call it as the decoder of an "
                "EncoderDecoder, or leave cross out of its blocks"
            )
        if (layout.segments is None) != (memory.segments is None):
            raise ValueError("cross-attention: segments of one side only; number the pairs of texts on both sides")
        q = self.q_norm(self.wq(x).unflatten(-1, (-1, self.config.d_head)))
        out = kernels.attention(
            q, memory.keys, memory.values, layout.positions, memory.positions,
            causal=False, q_segments=layout.segments, k_segments=memory.segments,
            softcap=self.config.softcap, scale=self.config.scale,
            # A token whose segment has no source sees nothing, which the promise would deny.
            causal_from_zero=layout.causal_from_zero and memory.is_whole and layout.segments is None,
        )  # fmt: skip
        return self.wo(out.flatten(2))
