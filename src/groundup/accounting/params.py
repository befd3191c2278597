"""Where the parameters are. Counted on the model itself, built on the meta device (no memory, any size)."""

from dataclasses import dataclass

import torch

from groundup.accounting.experts import inactive_parameters
from groundup.model import EncoderDecoderConfig, ModelConfig, MoEConfig, Transformer


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters by place. A tied embedding is counted once, as embedding.

    `active` are those that a token meets: all but the experts that it is not sent to.
    """

    total: int
    embedding: int
    head: int
    blocks: int
    active: int

    @property
    def non_embedding(self) -> int:
        """Kaplan et al. 2020 fit on this count; Hoffmann et al. 2022 on `total` (arXiv:2001.08361, 2203.15556)."""
        return self.total - self.embedding - self.head


def check_one_stack(config: ModelConfig) -> None:
    """ValueError for an `EncoderDecoderConfig`, whose costs depend on two lengths and are not counted."""
    if isinstance(config, EncoderDecoderConfig):
        raise ValueError(
            "accounting: an EncoderDecoderConfig has two stacks, and costs are counted of one; give its `encoder`, or "
            "count the parameters of an EncoderDecoder that is built on the meta device"
        )


def meta_model(config: ModelConfig) -> Transformer:
    """The model without storage: shapes and names are real, numbers are not."""
    check_one_stack(config)
    with torch.device("meta"):
        return Transformer(config)


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Parameters by place.

    >>> from groundup import presets
    >>> count_parameters(presets.gpt2("small")).total
    124439808
    """
    sizes = {name: p.numel() for name, p in meta_model(config).named_parameters()}
    layers = [*range(config.num_layers)] + [config.num_layers - 1] * (
        config.multi_token.depth if config.multi_token else 0
    )
    ffns = [config.block(layer).ffn for layer in layers]
    idle = sum(inactive_parameters(ffn, config.d_model) for ffn in ffns if isinstance(ffn, MoEConfig))
    return ParameterCount(
        total=sum(sizes.values()),
        embedding=sum(n for name, n in sizes.items() if name.startswith(("embed.", "positions."))),
        head=sum(n for name, n in sizes.items() if name.startswith("head.")),
        blocks=sum(n for name, n in sizes.items() if name.startswith("blocks.")),
        active=sum(sizes.values()) - idle,
    )
