"""Structured pruning: whole heads, channels and layers leave, and what stays is a smaller dense model.

    wq   rows of the heads that stay            up, gate   rows of the channels that stay
    wk   rows of the key/value heads            down       their columns
    wo   columns of the heads

Every layer keeps as many heads and channels as the others, but its own best ones: so the config stays one that model
folders and GGUF can hold, and the model runs wherever any other does, faster by what it lacks. With grouped queries a
key/value head goes with its queries, and each of those that stay keeps its best few: `num_heads / num_kv_heads` of
them.

Heads and channels: as in Ma et al. 2023 (arXiv:2305.11627) and Muralidharan et al. 2024 (arXiv:2407.14679). Layers: Men
et al. 2024 (arXiv:2403.03853). It takes some training, best by distillation, to heal; see `distill`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from groundup.compression.importance import Importance
from groundup.model import AttentionConfig, MLPConfig, ModelConfig, Transformer
from groundup.model.block import BlockConfig
from groundup.model.empty import to_empty


@dataclass(frozen=True)
class Smaller:
    """What a model shall have after pruning; None leaves a number as it is."""

    num_layers: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None
    d_ff: int | None = None


@dataclass(frozen=True)
class Kept:
    """Numbers of the heads and channels of a layer that stay, in their order; None: all."""

    layer: int
    heads: Int[Tensor, " heads"] | None
    kv_heads: Int[Tensor, " kv_heads"] | None
    channels: Int[Tensor, " channels"] | None


def choose_parts(config: ModelConfig, importance: Sequence[Importance], smaller: Smaller) -> list[Kept]:
    """The best parts of each layer that stays. ValueError, with the reason, for what cannot be pruned."""
    count = config.num_layers if smaller.num_layers is None else smaller.num_layers
    if not 1 <= count <= config.num_layers:
        raise ValueError(f"prune: num_layers={count}; the model has {config.num_layers}")
    if count < config.num_layers and config.multi_token is not None:
        raise ValueError("prune: the multi-token modules copy the last layer's form, so layers cannot be taken out")
    layers = _best(torch.tensor([each.layer for each in importance]), count)
    return [_kept(config.block(i), i, importance[i], smaller) for i in layers.tolist()]


def _kept(block: BlockConfig, index: int, importance: Importance, smaller: Smaller) -> Kept:
    heads = kv_heads = channels = None
    if smaller.num_heads is not None or smaller.num_kv_heads is not None:
        heads, kv_heads = _kept_heads(_prunable_mixer(block, index), importance.heads, smaller)
    if smaller.d_ff is not None:
        if not isinstance(block.ffn, MLPConfig):
            raise ValueError(f"prune: layer {index} has no dense feed-forward layer, so leave d_ff out")
        if not 1 <= smaller.d_ff <= block.ffn.d_ff:
            raise ValueError(f"prune: d_ff={smaller.d_ff}; layer {index} has {block.ffn.d_ff}")
        channels = _best(importance.channels, smaller.d_ff)
    return Kept(index, heads, kv_heads, channels)


def _prunable_mixer(block: BlockConfig, index: int) -> AttentionConfig:
    mixer = block.mixer
    if not isinstance(mixer, AttentionConfig):
        raise ValueError(f"prune: layer {index} has {type(mixer).__name__}, and heads are pruned in attention only")
    if mixer.qk_norm == "whole" or mixer.alibi:
        why = "ALiBi's slopes depend on their number" if mixer.alibi else "one norm spans all of them"
        raise ValueError(f"prune: layer {index} cannot lose heads: {why}; prune d_ff or layers")
    if block.cross is not None:
        raise ValueError(f"prune: layer {index} attends to a source, and heads are pruned in decoders only")
    return mixer


def _kept_heads(mixer: AttentionConfig, scores: Tensor, smaller: Smaller) -> tuple[Tensor, Tensor]:
    """(query heads, key/value heads): the best groups, and the best queries of each."""
    groups, size = mixer.num_kv_heads, mixer.num_heads // mixer.num_kv_heads
    keep = groups if smaller.num_kv_heads is None else smaller.num_kv_heads
    heads = keep * size if smaller.num_heads is None else smaller.num_heads
    if not 1 <= keep <= groups or heads % keep or not 1 <= heads // keep <= size:
        raise ValueError(
            f"prune: num_heads={heads} over num_kv_heads={keep}; expected 1 to {groups} key/value heads and for each "
            f"of them the same number of queries, 1 to {size}"
        )
    by_group = scores.view(groups, size)
    best = by_group.topk(heads // keep, dim=1)
    kv_heads = _best(best.values.sum(1), keep)
    queries = best.indices.sort(dim=1).values[kv_heads] + size * kv_heads[:, None]
    return queries.flatten(), kv_heads


def _best(scores: Tensor, count: int) -> Int[Tensor, " kept"]:
    """Numbers of the highest scores, in ascending order; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def shrink(model: Transformer, kept: Sequence[Kept]) -> Transformer:
    """A new model of the parts that stay, with copies of their weights."""
    config = smaller_config(model.config, kept)
    with torch.device("meta"):
        small = Transformer(config)
    to_empty(small, model.device)
    state = {name: t for name, t in model.state_dict().items() if not name.startswith("blocks.")}
    for new, parts in enumerate(kept):
        state |= _block_state(model, parts, new)
    small.load_state_dict(state)
    small.compute_dtype, small.recompute, small.dropout = model.compute_dtype, model.recompute, model.dropout
    return small.train(model.training)


def smaller_config(config: ModelConfig, kept: Sequence[Kept]) -> ModelConfig:
    """The config of what stays; one block stands for all where they are alike."""
    blocks = [_block_config(config.block(parts.layer), parts) for parts in kept]
    same = all(block == blocks[0] for block in blocks)
    return replace(config, num_layers=len(kept), blocks=tuple(blocks[:1] if same else blocks))


def _block_config(block: BlockConfig, parts: Kept) -> BlockConfig:
    changes: dict[str, Any] = {}
    if parts.heads is not None and parts.kv_heads is not None:
        assert isinstance(block.mixer, AttentionConfig)
        changes["mixer"] = replace(block.mixer, num_heads=len(parts.heads), num_kv_heads=len(parts.kv_heads))
    if parts.channels is not None:
        assert isinstance(block.ffn, MLPConfig)
        changes["ffn"] = replace(block.ffn, d_ff=len(parts.channels))
    return replace(block, **changes)


def _block_state(model: Transformer, parts: Kept, new: int) -> dict[str, Tensor]:
    block = model.blocks[parts.layer]
    return {
        f"blocks.{new}.{name}": _sliced(name, t, parts, model.config.block(parts.layer))
        for name, t in block.state_dict().items()
    }


def _sliced(name: str, tensor: Tensor, parts: Kept, block: BlockConfig) -> Tensor:
    """The rows or columns of what stays."""
    rows, columns = _indices(parts, block)
    layer, _, kind = name.rpartition(".")
    if layer in rows:
        return tensor[rows[layer].to(tensor.device)]
    if layer in columns and kind == "weight":
        return tensor[:, columns[layer].to(tensor.device)]
    return tensor.clone()


def _indices(parts: Kept, block: BlockConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Layer of a block -> the rows of its tensors that stay; and -> the columns."""
    rows, columns = {}, {}
    if parts.heads is not None and parts.kv_heads is not None:
        assert isinstance(block.mixer, AttentionConfig)
        queries, keys = (_channels(h, block.mixer.d_head) for h in (parts.heads, parts.kv_heads))
        rows |= {"mixer.wq": queries, "mixer.wk": keys, "mixer.wv": keys, "mixer.sinks": parts.heads}
        columns["mixer.wo"] = queries
    if parts.channels is not None:
        rows |= {"ffn.gate": parts.channels, "ffn.up": parts.channels}
        columns["ffn.down"] = parts.channels
    return rows, columns


def _channels(heads: Tensor, d_head: int) -> Tensor:
    return (heads[:, None] * d_head + torch.arange(d_head)).flatten()


@torch.no_grad()
def silence(model: Transformer, kept: Sequence[Kept]) -> Transformer:
    """Set to zero, in place, what the parts that leave write into the residual stream.

    With norms before each branch (placement "pre") this is the model that `shrink` makes smaller: equal logits.
    """
    staying = {parts.layer: parts for parts in kept}
    for index in range(model.config.num_layers):
        block, parts = model.blocks[index], staying.get(index)
        columns = {} if parts is None else _indices(parts, model.config.block(index))[1]
        for path, module in block.named_modules():
            name = path.rpartition(".")[2]
            owner: Any = block.get_submodule(path.rpartition(".")[0]) if path else block
            if name not in getattr(owner, "residual_outputs", ()):
                continue
            if parts is None:
                for tensor in module.parameters():
                    tensor.zero_()
            elif path in columns:
                gone = torch.ones(module.weight.shape[1], dtype=torch.bool)  # type: ignore[union-attr, index]
                gone[columns[path]] = False
                module.weight[:, gone] = 0  # type: ignore[index]
    return model
