"""Functions that return model configs: one dial sets every size, each can be given explicitly instead.

The dial is depth: d_model = 64 num_layers (or num_layers = d_model / 64), heads of 64 channels.
"""

from dataclasses import replace

from groundup.config import nearest
from groundup.model.attention import AttentionConfig
from groundup.model.block import BlockConfig
from groundup.model.cross_attention import CrossAttentionConfig
from groundup.model.encoder_decoder import EncoderDecoderConfig
from groundup.model.feedforward import MLPConfig
from groundup.model.position import LearnedPositions, Rope, SinusoidalPositions
from groundup.model.transformer import ModelConfig

WIDTH_PER_LAYER = 64
D_HEAD = 64
D_FF_MULTIPLE = 64

GPT2_SIZES = {"small": (12, 768, 12), "medium": (24, 1024, 16), "large": (36, 1280, 20), "xl": (48, 1600, 25)}
"""Layers, d_model and heads of the four published models."""

VASWANI_SIZES = {"base": (6, 512, 8), "big": (6, 1024, 16)}
"""Layers of either side, d_model and heads."""


def llama(
    *,
    vocab_size: int,
    num_layers: int | None = None,
    d_model: int | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    d_head: int | None = None,
    d_ff: int | None = None,
    context_length: int = 1024,
    rope_theta: float = 10_000.0,
    qk_norm: bool = False,
    window: int | None = None,
    tie_embeddings: bool = False,
    norm_eps: float = 1e-5,
) -> ModelConfig:
    """Pre-RMSNorm, SwiGLU, RoPE, no biases. Touvron et al. 2023 (arXiv:2302.13971).

    Without num_kv_heads every head has its own keys and values; without d_ff it is `gated_d_ff(d_model)`.

    >>> llama(vocab_size=8192, num_layers=8).d_model
    512
    """
    num_layers, d_model = _depth_and_width(num_layers, d_model)
    num_heads, d_head = _heads(d_model, num_heads, d_head)
    mixer = AttentionConfig(
        num_heads, num_kv_heads or num_heads, d_head, rope=Rope(rope_theta), window=window, qk_norm=qk_norm
    )
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=num_layers,
        blocks=(BlockConfig(mixer, MLPConfig(d_ff or gated_d_ff(d_model))),),
        context_length=context_length,
        tie_embeddings=tie_embeddings,
        norm_eps=norm_eps,
    )


def qwen3(
    *,
    vocab_size: int,
    num_layers: int | None = None,
    d_model: int | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    d_head: int | None = None,
    d_ff: int | None = None,
    context_length: int = 1024,
    rope_theta: float = 1_000_000.0,
    window: int | None = None,
    tie_embeddings: bool = True,
    norm_eps: float = 1e-6,
) -> ModelConfig:
    """Llama's block with an RMSNorm on every query and key head, and tied embeddings (arXiv:2505.09388)."""
    return llama(
        vocab_size=vocab_size,
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        d_head=d_head,
        d_ff=d_ff,
        context_length=context_length,
        rope_theta=rope_theta,
        qk_norm=True,
        window=window,
        tie_embeddings=tie_embeddings,
        norm_eps=norm_eps,
    )


def gpt2(
    size: str = "small",
    *,
    vocab_size: int = 50_257,
    num_layers: int | None = None,
    d_model: int | None = None,
    num_heads: int | None = None,
    d_ff: int | None = None,
    context_length: int = 1024,
) -> ModelConfig:
    """GPT-2: pre-LayerNorm, GELU, learned positions, biases, tied. The dial is the published size.

    >>> gpt2("xl").d_model
    1600
    """
    if size not in GPT2_SIZES:
        raise ValueError(f"gpt2: size {size!r} is unknown{nearest(size, GPT2_SIZES)}")
    layers, width, heads = GPT2_SIZES[size]
    d_model = d_model or width
    num_heads, d_head = _heads(d_model, num_heads or (heads if d_model == width else None), None)
    mixer = AttentionConfig(num_heads, num_heads, d_head, rope=None, bias=True, out_bias=True)
    ffn = MLPConfig(d_ff or 4 * d_model, gated=False, activation="gelu_tanh", bias=True)
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=num_layers or layers,
        blocks=(BlockConfig(mixer, ffn, norm="layer"),),
        context_length=context_length,
        positions=LearnedPositions(context_length),
        tie_embeddings=True,
        norm_bias=True,
    )


def vaswani(
    *,
    vocab_size: int = 37_000,
    num_layers: int = 6,
    d_model: int = 512,
    num_heads: int | None = None,
    d_ff: int | None = None,
    context_length: int = 1024,
) -> ModelConfig:
    """The decoder of the original Transformer without its cross-attention: post-LayerNorm, ReLU, sinusoids.

    Feed-forward layers have biases and attention none, as in Vaswani et al. 2017, eq. 1 and 2
    (arXiv:1706.03762). Without dropout.
    """
    num_heads, d_head = _heads(d_model, num_heads, None)
    mixer = AttentionConfig(num_heads, num_heads, d_head, rope=None)
    ffn = MLPConfig(d_ff or 4 * d_model, gated=False, activation="relu", bias=True)
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=num_layers,
        blocks=(BlockConfig(mixer, ffn, norm="layer", placement="post"),),
        context_length=context_length,
        positions=SinusoidalPositions(context_length),
        tie_embeddings=True,
        scale_embeddings=True,
        norm_bias=True,
        final_norm=False,
    )


def vaswani_encoder_decoder(
    size: str = "base",
    *,
    vocab_size: int = 37_000,
    num_layers: int | None = None,
    d_model: int | None = None,
    num_heads: int | None = None,
    d_ff: int | None = None,
    context_length: int = 1024,
) -> EncoderDecoderConfig:
    """The original Transformer: two stacks of `num_layers`, one table of tokens for source, target and head.

    Sizes "base" and "big" of Vaswani et al. 2017, table 3 (arXiv:1706.03762), with the vocabulary of section 5.1:
    63,045,632 and 214,171,648 parameters, where the table says 65 M and 213 M. Its other rows, which vary "base", are
    those of a table of 41,004 to 41,208 tokens. Trained with `model.dropout` of 0.1 and 0.3.

    >>> vaswani_encoder_decoder("big").decoder.block(0).mixer.num_heads
    16
    """
    if size not in VASWANI_SIZES:
        raise ValueError(f"vaswani_encoder_decoder: size {size!r} is unknown{nearest(size, VASWANI_SIZES)}")
    layers, width, heads = VASWANI_SIZES[size]
    d_model = d_model or width
    num_heads, d_head = _heads(d_model, num_heads or (heads if d_model == width else None), None)
    decoder = vaswani(
        vocab_size=vocab_size, num_layers=num_layers or layers, d_model=d_model, num_heads=num_heads, d_ff=d_ff,
        context_length=context_length,
    )  # fmt: skip
    blocks = (replace(decoder.blocks[0], cross=CrossAttentionConfig(num_heads, num_heads, d_head)),)
    return EncoderDecoderConfig(encoder(decoder), replace(decoder, blocks=blocks))


def encoder(config: ModelConfig) -> ModelConfig:
    """The same layers, looking ahead: for masked language modelling, or one half of an `EncoderDecoderConfig`.

    >>> encoder(gpt2()).causal
    False
    """
    if other := next((b.mixer for b in config.blocks if not isinstance(b.mixer, AttentionConfig)), None):
        raise ValueError(f"encoder: {type(other).__name__} cannot look ahead; give a config with AttentionConfig alone")
    blocks = tuple(replace(b, mixer=replace(b.mixer, causal=False)) for b in config.blocks)
    return replace(config, blocks=blocks)


def gated_d_ff(d_model: int, multiple: int = D_FF_MULTIPLE) -> int:
    """8/3 d_model rounded up to a multiple: three matrices of it cost what two of 4 d_model do.

    Shazeer 2020, section 3 (arXiv:2002.05202).
    """
    return -(-8 * d_model // (3 * multiple)) * multiple


def _depth_and_width(num_layers: int | None, d_model: int | None) -> tuple[int, int]:
    if num_layers is None and d_model is None:
        raise ValueError("preset: give num_layers or d_model; the other follows from it")
    if d_model is None:
        assert num_layers is not None
        d_model = WIDTH_PER_LAYER * num_layers
    return num_layers or max(1, round(d_model / WIDTH_PER_LAYER)), d_model


def _heads(d_model: int, num_heads: int | None, d_head: int | None) -> tuple[int, int]:
    """Heads and their size. Without an explicit d_head the heads divide d_model."""
    if d_head is not None:
        return num_heads or max(1, d_model // d_head), d_head
    allowed = [n for n in range(1, d_model + 1) if d_model % n == 0 and d_model // n % 2 == 0]
    wanted = d_model / D_HEAD if num_heads is None else num_heads
    closest = min(allowed, key=lambda n: abs(n - wanted), default=None)
    if closest is None:
        raise ValueError(f"preset: d_model={d_model} is odd; use {d_model + 1}")
    if num_heads is None:
        return closest, d_model // closest
    if d_model % num_heads:
        raise ValueError(
            f"preset: d_model={d_model} is not divisible by num_heads={num_heads}; the nearest number "
            f"of heads that divides it is {closest} (d_head {d_model // closest}), or give d_head explicitly"
        )
    return num_heads, d_model // num_heads
