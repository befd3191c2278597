"""The published Mamba-2 models: their sizes, and where their weights are in a Hugging Face file."""

from groundup.config import nearest
from groundup.model.block import BlockConfig
from groundup.model.mamba import Mamba2Config
from groundup.model.transformer import ModelConfig
from groundup.model.weight_names import Place

MAMBA2_SIZES = {"130m": (24, 768), "370m": (48, 1024), "780m": (48, 1536), "1.3b": (48, 2048), "2.7b": (64, 2560)}
"""Layers and d_model."""

D_HEAD, EXPAND = 64, 2

MAMBA2_PLACES = {
    "embed": Place("backbone.embeddings"),
    "blocks.{i}.mixer_norm": Place("backbone.layers.{i}.norm"),
    "blocks.{i}.mixer": Place("backbone.layers.{i}.mixer"),  # A_log, D and dt_bias, which are not in a module of theirs
    "blocks.{i}.mixer.in_proj": Place("backbone.layers.{i}.mixer.in_proj"),
    "blocks.{i}.mixer.conv": Place("backbone.layers.{i}.mixer.conv1d"),
    "blocks.{i}.mixer.norm": Place("backbone.layers.{i}.mixer.norm"),
    "blocks.{i}.mixer.out_proj": Place("backbone.layers.{i}.mixer.out_proj"),
    "final_norm": Place("backbone.norm_f"),
    "head": Place("lm_head"),
}
"""As `weight_names.LLAMA_PLACES`, for Mamba2ForCausalLM."""


def mamba2(
    size: str = "130m",
    *,
    vocab_size: int = 50_288,
    num_layers: int | None = None,
    d_model: int | None = None,
    d_state: int = 128,
    context_length: int = 2048,
) -> ModelConfig:
    """Mamba-2: pre-RMSNorm and a mixer, no feed-forward layers, tied. The dial is the published size.

    The vocabulary is GPT-NeoX's 50,277 rounded up to a multiple of 16. Dao & Gu 2024 (arXiv:2405.21060).

    >>> mamba2("2.7b").d_model
    2560
    """
    if size not in MAMBA2_SIZES:
        raise ValueError(f"mamba2: size {size!r} is unknown{nearest(size, MAMBA2_SIZES)}")
    layers, width = MAMBA2_SIZES[size]
    d_model = d_model or width
    if EXPAND * d_model % D_HEAD:
        raise ValueError(
            f"mamba2: d_model={d_model} gives {EXPAND * d_model} inner channels, which are no multiple of the "
            f"{D_HEAD} of a head; use {max(1, round(EXPAND * d_model / D_HEAD)) * D_HEAD // EXPAND}"
        )
    mixer = Mamba2Config(EXPAND * d_model // D_HEAD, D_HEAD, d_state)
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=num_layers or layers,
        blocks=(BlockConfig(mixer, None),),
        context_length=context_length,
        tie_embeddings=True,
    )
