"""Model configs: by one dial (`llama(vocab_size=..., num_layers=...)`), or those of published models, by name."""

from groundup.config import nearest
from groundup.model.transformer import ModelConfig
from groundup.presets import dense, experts, recurrent
from groundup.presets.dials import (
    GPT2_SIZES,
    VASWANI_SIZES,
    encoder,
    gated_d_ff,
    gpt2,
    llama,
    qwen3,
    vaswani,
    vaswani_encoder_decoder,
)
from groundup.presets.published import Published
from groundup.presets.recurrent import mamba2

__all__ = [
    "GPT2_SIZES", "PUBLISHED", "Published", "VASWANI_SIZES", "encoder", "gated_d_ff", "gpt2", "llama", "mamba2",
    "published", "qwen3", "vaswani", "vaswani_encoder_decoder",
]  # fmt: skip

PUBLISHED: dict[str, Published] = dense.MODELS | experts.MODELS | recurrent.MODELS


def published(name: str) -> ModelConfig:
    """The config of a published model, one of `PUBLISHED`. ValueError with the nearest name for any other.

    >>> published("gpt2-xl").num_layers
    48
    """
    if name not in PUBLISHED:
        raise ValueError(f"model {name!r} is not among the published ones{nearest(name, PUBLISHED)}")
    return PUBLISHED[name].make()
