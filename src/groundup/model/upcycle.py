"""Sparse upcycling: a trained dense model becomes a mixture of experts that computes the same at first.

Every expert begins as a copy of the dense layer, and gates that sum to one make their mixture that layer again,
whatever the new router chooses. Komatsuzaki et al. 2022 (arXiv:2212.05055).
"""

from dataclasses import replace

import torch
from torch import Tensor

from groundup.model.empty import to_empty
from groundup.model.feedforward import MLP, MLPConfig
from groundup.model.moe import MoE, MoEConfig
from groundup.model.router import TopKRouter
from groundup.model.transformer import Transformer


def upcycle(dense: Transformer, moe: MoEConfig, seed: int = 0, every: int = 1) -> Transformer:
    """A model whose feed-forward layers are mixtures of experts made from the dense ones; logits are equal.

    every: of how many layers one is turned, beginning with the last (Komatsuzaki et al. turn every other).

    Experts may be narrower than the dense layer by a factor g (d_ff = g * moe.d_ff): expert e is then the e mod g-th
    slice of it. Groups of g neighbours start with one router row, so that whole groups are chosen, and scale = g
    makes up for gates being divided by g: the "virtual groups" of He et al. 2024 (arXiv:2410.07524).

    Raises ValueError, with the fix, for a config whose output could not equal the dense layer's.
    """
    if not isinstance(dense, Transformer):
        raise ValueError(f"upcycle: expected a Transformer, one stack of blocks, not a {type(dense).__name__}")
    if dense.config.multi_token is not None:
        raise ValueError("upcycle: the multi-token modules copy the last layer's form; train them after upcycling")
    if every < 1:
        raise ValueError(f"upcycle: every={every}; expected at least 1, for each layer")
    layers = range(dense.config.num_layers)
    turned = {layer for layer in layers if (dense.config.num_layers - 1 - layer) % every == 0}
    for layer in turned:
        _check(dense.config.block(layer).ffn, moe, layer)
    blocks = tuple(
        replace(dense.config.block(layer), ffn=moe) if layer in turned else dense.config.block(layer)
        for layer in layers
    )
    with torch.device("meta"):
        model = Transformer(replace(dense.config, blocks=blocks))
    to_empty(model, dense.device)
    model.init_weights(seed)
    model.compute_dtype, model.recompute, model.dropout = dense.compute_dtype, dense.recompute, dense.dropout
    taken = model.load_state_dict(dense.state_dict(), strict=False)
    assert all(".ffn." in name for name in [*taken.missing_keys, *taken.unexpected_keys])
    with torch.no_grad():
        for layer in turned:
            _fill(model.blocks[layer].ffn, dense.blocks[layer].ffn)  # type: ignore[union-attr]
    return model


def _check(ffn: object, moe: MoEConfig, layer: int) -> None:
    where = f"upcycle: layer {layer}"
    if not isinstance(ffn, MLPConfig) or ffn.bias:
        raise ValueError(f"{where} has no dense feed-forward layer without biases to copy: {ffn!r}")
    if (moe.gated, moe.activation) != (ffn.gated, ffn.activation):
        raise ValueError(
            f"{where}: experts need gated={ffn.gated} and activation={ffn.activation!r}, as the dense layer"
        )
    slices, rest = divmod(ffn.d_ff, moe.d_ff)
    if rest or moe.num_experts % slices or moe.top_k % slices:
        raise ValueError(
            f"{where}: d_ff={ffn.d_ff} in slices of {moe.d_ff} does not fit; the number of slices must be whole and "
            f"divide num_experts={moe.num_experts} and top_k={moe.top_k}"
        )
    router = moe.router
    if not isinstance(router, TopKRouter) or not router.renormalise or router.scale != slices:
        raise ValueError(
            f"{where}: gates must sum to {slices}, or the mixture is not the dense layer; use "
            f"TopKRouter(renormalise=True, scale={slices})"
        )
    if moe.num_shared or moe.capacity_factor is not None:
        raise ValueError(f"{where}: shared experts add to the output and drops take from it; use neither here")


def _fill(moe: MoE, mlp: MLP) -> None:
    """Copies (or slices) into the stacks, and one of the random router rows for each group of slices."""
    width, slices = moe.config.d_ff, mlp.config.d_ff // moe.config.d_ff
    groups = moe.config.num_experts // slices

    def stacked(weight: Tensor, dim: int) -> Tensor:
        return torch.stack(weight.split(width, dim)).repeat(groups, 1, 1)

    if moe.experts.gate is not None and mlp.gate is not None:
        moe.experts.gate.weight.copy_(stacked(mlp.gate.weight, 0))
    moe.experts.up.weight.copy_(stacked(mlp.up.weight, 0))
    moe.experts.down.weight.copy_(stacked(mlp.down.weight, 1))
    assert moe.router.weight is not None
    moe.router.weight.copy_(moe.router.weight[:groups].repeat_interleave(slices, 0))
