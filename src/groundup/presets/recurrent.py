"""Published models whose layers are recurrences."""

from functools import partial

from groundup.config import nearest
from groundup.model.block import BlockConfig
from groundup.model.mamba import Mamba2Config
from groundup.model.transformer import ModelConfig
from groundup.presets.published import Published

MAMBA2_SIZES = {"130m": (24, 768), "370m": (48, 1024), "780m": (48, 1536), "1.3b": (48, 2048), "2.7b": (64, 2560)}
"""Layers and d_model."""

D_HEAD, EXPAND = 64, 2


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


_MAMBA2 = "Dao & Gu 2024 (arXiv:2405.21060)"

MODELS: dict[str, Published] = {
    "mamba-2-130m": Published(partial(mamba2, "130m"), 130_000_000, _MAMBA2, rounded=10_000_000),
    "mamba-2-370m": Published(partial(mamba2, "370m"), 370_000_000, _MAMBA2, rounded=10_000_000),
    "mamba-2-780m": Published(partial(mamba2, "780m"), 780_000_000, _MAMBA2, rounded=10_000_000),
    "mamba-2-1.3b": Published(partial(mamba2, "1.3b"), 1_300_000_000, _MAMBA2, rounded=100_000_000),
    "mamba-2-2.7b": Published(partial(mamba2, "2.7b"), 2_700_000_000, _MAMBA2, rounded=100_000_000),
}
