"""What a family of models is: a Hugging Face class, its config.json both ways, and where its weights are."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from groundup.model.attention import AttentionConfig
from groundup.model.block import BlockConfig
from groundup.model.families.keys import Keys, check_neutral
from groundup.model.feedforward import MLPConfig
from groundup.model.transformer import ModelConfig
from groundup.model.weight_names import Place

Reasons = list[tuple[bool, str]]


@dataclass(frozen=True)
class Family:
    """A class of `transformers`, and what is ours of it.

    claims    whether a config is of this family if of any; the first family that claims a config decides
    reasons   what in a config the class does not have, for those who want to write it
    write     the family's part of a config.json
    read      what a config.json describes; ValueError names a key
    places    where the weights are, for this config, config.json and names of the file's tensors (none: as written)
    reads     keys of `keys.NEUTRAL` that `read` looks at
    fixed     further keys that have one supported value
    unused    beginnings of names in a file that belong to parts that a causal model does not use
    """

    model_type: str
    architecture: str
    claims: Callable[[ModelConfig], bool]
    reasons: Callable[[ModelConfig], Reasons]
    write: Callable[[ModelConfig], dict[str, Any]]
    read: Callable[[Keys], ModelConfig]
    places: Callable[[ModelConfig, Keys, Collection[str]], Mapping[str, Place]]
    prefix: str = "model."
    reads: frozenset[str] = frozenset()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    unused: Callable[[Keys], tuple[str, ...]] = lambda data: ()

    def parse(self, data: Keys) -> ModelConfig:
        """`read`, after a look for keys that would change the numbers unseen."""
        check_neutral(data, self.reads, self.fixed, self.architecture)
        return self.read(data)


def used_blocks(config: ModelConfig) -> tuple[BlockConfig, ...]:
    """The blocks that occur: fewer than `config.blocks` in a shallow model."""
    return config.blocks[: config.num_layers]


def attention(block: BlockConfig) -> AttentionConfig:
    """The mixer of a block of a family with attention."""
    assert isinstance(block.mixer, AttentionConfig)
    return block.mixer


def mlp(block: BlockConfig) -> MLPConfig:
    """The feed-forward layer of a block of a family with nothing else."""
    assert isinstance(block.ffn, MLPConfig)
    return block.ffn


def is_plain(config: ModelConfig) -> bool:
    """Attention and an MLP in every block."""
    return all(isinstance(b.mixer, AttentionConfig) and isinstance(b.ffn, MLPConfig) for b in used_blocks(config))


def windows(config: ModelConfig) -> list[int | None]:
    """Each layer's window."""
    return [attention(config.block(i)).window for i in range(config.num_layers)]


def common_reasons(config: ModelConfig, placement: str) -> Reasons:
    """What no family with attention in pre-norm blocks, or others of one placement, has."""
    blocks = used_blocks(config)
    first = blocks[0]
    alike = [replace(b, mixer=replace(attention(b), window=1)) for b in blocks]
    return [
        (first.placement != placement, f"placement {first.placement!r} (only {placement!r} is written)"),
        (not config.final_norm, "no final norm"),
        (config.logit_softcap is not None, "logit_softcap"),
        (config.scale_embeddings, "scale_embeddings"),
        (attention(first).softcap is not None, "attention softcap"),
        (any(b != alike[0] for b in alike), "layers that differ in more than their window"),
    ]


def undivided(config: ModelConfig) -> tuple[bool, str]:
    """Some classes of `transformers` refuse a width that heads do not divide, even where head_dim is given."""
    heads = getattr(config.block(0).mixer, "num_heads", 1)
    return config.d_model % heads != 0, "a d_model that num_heads does not divide"
