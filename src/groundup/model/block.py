"""One residual block for every norm placement: x <- out(x + post(f(pre(x)))), for mixer and feed-forward."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from groundup.config import nearest
from groundup.model.attention import Attention, AttentionConfig
from groundup.model.cache import Cache
from groundup.model.cross_attention import CrossAttention, CrossAttentionConfig, Memory
from groundup.model.delta import GatedDelta, GatedDeltaConfig
from groundup.model.feedforward import MLP, MLPConfig
from groundup.model.latent import LatentAttention, LatentAttentionConfig
from groundup.model.linear_attention import GatedLinear, GatedLinearConfig
from groundup.model.lstm import LSTM, LSTMConfig
from groundup.model.mamba import Mamba2, Mamba2Config
from groundup.model.moe import MoE, MoEConfig
from groundup.model.neural_ngram import NeuralNgram, NeuralNgramConfig
from groundup.model.norm import NormKind, build_norm
from groundup.model.position import Layout

Placement = Literal["pre", "post", "sandwich", "inner", "parallel", "none"]

PLACEMENTS: dict[str, tuple[str, ...]] = {
    "pre": ("mixer_norm", "ffn_norm"),
    "post": ("mixer_out_norm", "ffn_out_norm"),
    "sandwich": ("mixer_norm", "mixer_post_norm", "ffn_norm", "ffn_post_norm"),
    "inner": ("mixer_post_norm", "ffn_post_norm"),
    "parallel": ("mixer_norm",),
    "none": (),
}
"""The norms that are real in each placement; the other slots pass their input on."""

SLOTS = ("mixer_norm", "mixer_post_norm", "mixer_out_norm", "ffn_norm", "ffn_post_norm", "ffn_out_norm")
CROSS_SLOTS = ("cross_norm", "cross_post_norm", "cross_out_norm")

FUSED_SUMS = ("cuda",)
"""Devices with a kernel for a sum and its norm. Elsewhere the two stay apart, each under its own name in a profile."""

RecurrentConfig = GatedLinearConfig | Mamba2Config | GatedDeltaConfig | LSTMConfig | NeuralNgramConfig
MixerConfig = AttentionConfig | LatentAttentionConfig | RecurrentConfig
FeedForwardConfig = MLPConfig | MoEConfig


@dataclass(frozen=True)
class BlockConfig:
    """A mixer of tokens, a feed-forward layer (None: the mixer is all, as in Mamba), and where the norms go.

    `cross` is attention to a source, between the two: in the decoder of an `EncoderDecoder`.
    """

    mixer: MixerConfig
    ffn: FeedForwardConfig | None
    norm: NormKind = "rms"
    placement: Placement = "pre"
    cross: CrossAttentionConfig | None = None

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            known = nearest(self.placement, PLACEMENTS)
            raise ValueError(f"block: placement {self.placement!r} is unknown{known}")
        if self.norm not in ("rms", "layer"):
            raise ValueError(f"block: norm {self.norm!r} is unknown{nearest(self.norm, ('rms', 'layer'))}")
        if self.ffn is None and self.placement == "parallel":
            raise ValueError("block: placement 'parallel' needs a feed-forward layer beside the mixer; use 'pre'")

    @property
    def norms(self) -> tuple[str, ...]:
        """The norm slots that are real in this block."""
        norms = tuple(slot for slot in PLACEMENTS[self.placement] if self.ffn or not slot.startswith("ffn"))
        if self.cross is None or self.placement == "parallel":  # where all branches read the same normed x
            return norms
        return (*norms, *(slot.replace("mixer", "cross") for slot in norms if slot.startswith("mixer")))


def build_mixer(config: MixerConfig, d_model: int, norm_eps: float) -> nn.Module:
    """The registry of mixers."""
    match config:
        case AttentionConfig():
            return Attention(config, d_model, norm_eps)
        case LatentAttentionConfig():
            return LatentAttention(config, d_model, norm_eps)
        case GatedLinearConfig():
            return GatedLinear(config, d_model, norm_eps)
        case Mamba2Config():
            return Mamba2(config, d_model, norm_eps)
        case GatedDeltaConfig():
            return GatedDelta(config, d_model, norm_eps)
        case LSTMConfig():
            return LSTM(config, d_model, norm_eps)
        case NeuralNgramConfig():
            return NeuralNgram(config, d_model, norm_eps)
    raise AssertionError(f"no mixer for {config!r}")


def build_ffn(config: FeedForwardConfig, d_model: int) -> nn.Module:
    """The registry of feed-forward layers."""
    match config:
        case MLPConfig():
            return MLP(config, d_model)
        case MoEConfig():
            return MoE(config, d_model)
    raise AssertionError(f"no feed-forward layer for {config!r}")


class Block(nn.Module):
    """x <- out(x + post(f(pre(x)))) for the mixer, for attention to a source where there is one, for the feed-forward.

    placement   pre  post  out
    pre          *                GPT-2, Llama
    post                    *     Transformer (2017)
    sandwich     *    *           Gemma 2, "peri"
    inner             *           OLMo 2
    parallel     *                PaLM, GPT-J: all branches read the same normed x
    none                          no norm but the final one: diverges unless kept shallow or slow

    `dropout` is the share of each branch's output that training sets to zero (Srivastava et al. 2014); no part of
    the architecture, so not of its config. `reads` says of each branch what it reads: the other tokens of its sequence,
    a source, or one token at a time; parallelism along the sequence goes by it.
    """

    reads: ClassVar[dict[str, str]] = {"mixer": "sequence", "cross": "source", "ffn": "token"}

    mixer_norm: nn.Module
    mixer_post_norm: nn.Module
    mixer_out_norm: nn.Module
    ffn_norm: nn.Module
    ffn_post_norm: nn.Module
    ffn_out_norm: nn.Module
    cross_norm: nn.Module
    cross_post_norm: nn.Module
    cross_out_norm: nn.Module

    def __init__(self, config: BlockConfig, d_model: int, norm_eps: float = 1e-5, norm_bias: bool = False) -> None:
        super().__init__()
        self.config = config
        self.dropout = 0.0
        self.mixer = build_mixer(config.mixer, d_model, norm_eps)
        self.ffn = None if config.ffn is None else build_ffn(config.ffn, d_model)
        self.cross = None if config.cross is None else CrossAttention(config.cross, d_model, norm_eps)
        for slot in SLOTS if config.cross is None else SLOTS + CROSS_SLOTS:
            norm = build_norm(config.norm, d_model, norm_eps, norm_bias) if slot in config.norms else nn.Identity()
            self.add_module(slot, norm)

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], layout: Layout, cache: Cache, memory: Memory | None = None
    ) -> Float[Tensor, "batch seq d_model"]:
        h = self.mixer_norm(x)
        mixed = self._drop(self.mixer_post_norm(self.mixer(h, layout, cache)))
        if self.config.placement == "parallel":
            assert self.ffn is not None
            if self.cross is not None:
                mixed = mixed + self._drop(self.cross(h, layout, memory))
            return x + mixed + self._drop(self.ffn(h, layout))
        if self.ffn is not None and self._adds_in_norm(x):
            x, h = self.ffn_norm(x, mixed)
            return x + self._drop(self.ffn_post_norm(self.ffn(h, layout)))
        x = self.mixer_out_norm(x + mixed)
        if self.cross is not None:
            seen = self.cross_post_norm(self.cross(self.cross_norm(x), layout, memory))
            x = self.cross_out_norm(x + self._drop(seen))
        if self.ffn is None:
            return x
        return self.ffn_out_norm(x + self._drop(self.ffn_post_norm(self.ffn(self.ffn_norm(x), layout))))

    def _adds_in_norm(self, x: Tensor) -> bool:
        """Whether the sum after the mixer goes into a norm at once, where one kernel does both."""
        slots = self.config.norms
        return (
            x.device.type in FUSED_SUMS and self.cross is None and "ffn_norm" in slots and "mixer_out_norm" not in slots
        )

    def _drop(self, x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x
