"""Weights that are set to zero one by one: the least important of a matrix, of the model, or two of every four.

    scores    9 1 4 2 | 7 8 3 6
    50 %      9 . 4 . | 7 8 . .      the smallest half of the row, matrix or model
    2:4       9 . 4 . | 7 8 . .      two of each four neighbours along the inputs, whatever the others are

A mask says what stays. Zeros make nothing faster by themselves: unstructured ones save memory only in a sparse format,
2:4 is what sparse tensor cores (Ampere and later) read. For a smaller dense model see `shrink`.

Magnitudes: Han et al. 2015 (arXiv:1506.02626). 2:4: Mishra et al. 2021 (arXiv:2104.08378). Scores: `importance`.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from groundup.config import nearest
from groundup.train.loop import Hook

SCOPES = ("row", "tensor", "model")
Scores = Mapping[str, Float[Tensor, "d_out d_in"]]
Masks = dict[str, Bool[Tensor, "d_out d_in"]]
"""Path of a linear layer -> True where its weight stays."""


def sparse_masks(scores: Scores, sparsity: float, scope: str = "tensor") -> Masks:
    """Masks without the lowest-scored `sparsity` of the weights, exactly: round(sparsity * count) of each scope.

    scope: what is ranked together: a row of a matrix (what Wanda prescribes), a matrix, or the whole model. Of equal
    scores the first go. ValueError for a share outside of 0 to 1, or an unknown scope.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"prune: sparsity={sparsity}; expected a share of the weights, from 0 to below 1")
    if scope not in SCOPES:
        raise ValueError(f"prune: scope={scope!r}{nearest(scope, SCOPES)}")
    if scope == "row":
        return {path: _without_lowest(score, sparsity) for path, score in scores.items()}
    if scope == "tensor":
        return {path: _without_lowest(s.flatten()[None], sparsity).view_as(s) for path, s in scores.items()}
    flat = torch.cat([score.flatten() for score in scores.values()])
    kept = _without_lowest(flat[None], sparsity)[0].split([score.numel() for score in scores.values()])
    return {path: mask.view_as(score) for (path, score), mask in zip(scores.items(), kept, strict=True)}


def _without_lowest(scores: Float[Tensor, "rows columns"], share: float) -> Bool[Tensor, "rows columns"]:
    """True but for the lowest round(share * columns) of each row."""
    count = round(share * scores.shape[1])
    if not count:
        return torch.ones_like(scores, dtype=torch.bool)
    last = scores.kthvalue(count, dim=1, keepdim=True).values
    equal = scores == last
    still = count - (scores < last).sum(1, keepdim=True)
    return (scores > last) | (equal & (equal.cumsum(1) > still))


def semi_structured_masks(scores: Scores, kept: int = 2, of: int = 4) -> Masks:
    """Masks that keep the `kept` highest scores of every `of` neighbours along the inputs.

    ValueError for a matrix whose number of inputs is no multiple of `of`.
    """
    if not 0 < kept < of:
        raise ValueError(f"prune: {kept} of {of} weights; expected at least 1 and fewer than all")
    masks = {}
    for path, score in scores.items():
        if score.shape[1] % of:
            raise ValueError(f"prune: {path} has {score.shape[1]} inputs, which {of} does not divide")
        groups = score.unflatten(1, (-1, of))
        best = groups.topk(kept, dim=2).indices
        masks[path] = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, best, True).flatten(1)
    return masks


def is_semi_structured(weight: Float[Tensor, "d_out d_in"], kept: int = 2, of: int = 4) -> bool:
    """Whether no `of` neighbours along the inputs hold more than `kept` numbers other than zero."""
    if weight.shape[1] % of:
        return False
    return int((weight != 0).unflatten(1, (-1, of)).sum(2).max()) <= kept


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Masks) -> nn.Module:
    """Set to zero, in place, what the masks do not keep. ValueError for a mask that fits no layer."""
    for path, mask in masks.items():
        weight = _weight(model, path)
        if weight.shape != mask.shape:
            raise ValueError(f"prune: {path} is {tuple(weight.shape)}, and its mask {tuple(mask.shape)}")
        weight.masked_fill_(~mask, 0)
    return model


def sparsity(model: nn.Module, paths: Mapping[str, Any]) -> float:
    """The share of zeros in the weights of the layers at `paths`."""
    weights = [_weight(model, path) for path in paths]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


@contextlib.contextmanager
def kept_masks(model: nn.Module, masks: Masks) -> Iterator[dict[int, Hook]]:
    """For training a pruned model: zeros stay zeros.

        with kept_masks(model, masks) as every:
            train(model, source, next_token, optimizer, steps, every=every)

    What is pruned has a gradient of zero, so that neither clipping nor the optimizer's moments count it; the hook puts
    zeros back after each update, for optimizers that move a weight without a gradient (Muon).
    """
    apply_masks(model, masks)
    handles = [_weight(model, path).register_hook(_masking(mask)) for path, mask in masks.items()]
    try:
        yield {1: lambda step, trained, run: apply_masks(trained, masks)}
    finally:
        for handle in handles:
            handle.remove()


def _masking(mask: Tensor) -> Any:
    return lambda gradient: gradient.masked_fill(~mask, 0)


def _weight(model: nn.Module, path: str) -> Tensor:
    try:
        weight = model.get_submodule(path).weight
    except AttributeError:
        raise ValueError(f"prune: the model has no layer {path}") from None
    assert isinstance(weight, Tensor)
    return weight
