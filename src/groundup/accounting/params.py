"""Where the parameters are. Counted on the model itself, built on the meta device (no memory, any size)."""

from dataclasses import dataclass

import torch

from groundup.model import ModelConfig, Transformer


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters by place. A tied embedding is counted once, as embedding."""

    total: int
    embedding: int
    head: int
    blocks: int

    @property
    def non_embedding(self) -> int:
        """Kaplan et al. 2020 fit on this count; Hoffmann et al. 2022 on `total` (arXiv:2001.08361, 2203.15556)."""
        return self.total - self.embedding - self.head


def meta_model(config: ModelConfig) -> Transformer:
    """The model without storage: shapes and names are real, numbers are not."""
    with torch.device("meta"):
        return Transformer(config)


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Parameters by place.

    >>> from groundup import presets
    >>> count_parameters(presets.gpt2("small")).total
    124439808
    """
    sizes = {name: p.numel() for name, p in meta_model(config).named_parameters()}
    return ParameterCount(
        total=sum(sizes.values()),
        embedding=sum(n for name, n in sizes.items() if name.startswith(("embed.", "positions."))),
        head=sum(n for name, n in sizes.items() if name.startswith("head.")),
        blocks=sum(n for name, n in sizes.items() if name.startswith("blocks.")),
    )
