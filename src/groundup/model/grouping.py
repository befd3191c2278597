"""Fewer key/value heads for a trained model: from multi-head to grouped-query attention."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from groundup.model.attention import AttentionConfig
from groundup.model.block import BlockConfig
from groundup.model.fitting import fill
from groundup.model.transformer import ModelConfig, Transformer


def group_kv_heads(model: Transformer, num_kv_heads: int) -> Transformer:
    """A copy of `model` whose key and value heads are means over consecutive groups of the old ones.

    The group of query heads that read one pooled head are those that read its members before. Exact where
    the members were equal; otherwise train on for about 5 % of the original steps. Other mixers stay as they are.

    Raises ValueError where num_kv_heads does not divide a layer's present number.
    Ainslie et al. 2023, section 2.1 (arXiv:2305.13245).
    """
    if not isinstance(model, Transformer):
        raise ValueError(f"group_kv_heads: expected a Transformer, one stack of blocks, not a {type(model).__name__}")
    blocks = tuple(_grouped(block, num_kv_heads) for block in model.config.blocks)
    config = replace(model.config, blocks=blocks)
    with torch.device("meta"):
        grouped = Transformer(config)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for place, block in _blocks(config).items():
        mixer = block.mixer
        if not isinstance(mixer, AttentionConfig):
            continue
        norm = ("k_norm.weight",) if mixer.qk_norm == "whole" else ()
        for name in ("wk.weight", "wk.bias", "wv.weight", "wv.bias", *norm):
            path = f"{place}.mixer.{name}"
            if path in state:
                state[path] = _mean_heads(state[path], num_kv_heads, mixer.d_head)
    fill(grouped, state)
    grouped.compute_dtype, grouped.recompute, grouped.dropout = model.compute_dtype, model.recompute, model.dropout
    return grouped.train(model.training)


def _blocks(config: ModelConfig) -> dict[str, BlockConfig]:
    """Every block by its place in the model, those of further tokens included: they are as the last one."""
    blocks = {f"blocks.{i}": config.block(i) for i in range(config.num_layers)}
    for k in range(config.multi_token.depth if config.multi_token else 0):
        blocks[f"multi_token.depths.{k}.block"] = config.block(config.num_layers - 1)
    return blocks


def _grouped(block: BlockConfig, num_kv_heads: int) -> BlockConfig:
    if not isinstance(block.mixer, AttentionConfig):
        return block
    old = block.mixer.num_kv_heads
    if num_kv_heads < 1 or old % num_kv_heads:
        allowed = ", ".join(str(n) for n in range(1, old + 1) if old % n == 0)
        raise ValueError(f"{old} key/value heads cannot be pooled to num_kv_heads={num_kv_heads}; allowed: {allowed}")
    return replace(block, mixer=replace(block.mixer, num_kv_heads=num_kv_heads))


def _mean_heads(rows: Float[Tensor, "rows *d_model"], heads: int, d_head: int) -> Float[Tensor, "fewer *d_model"]:
    """Rows are heads of d_head rows each; the mean runs over the members of each of `heads` groups."""
    return rows.unflatten(0, (heads, -1, d_head)).mean(1).flatten(0, 1)
