"""Tensor parallelism applied from outside: each rank keeps the slices that modules' `shard` tables name.

A module declares what may be cut in a class attribute: {"wq": "col", ..., "wo": "row"}. Per word, what
becomes of that child:

    col      each rank keeps a range of output rows, and computes its own outputs from the whole input
    row      each rank keeps a range of input columns; outputs are summed over ranks, then the bias is added
    shared   kept whole; its output feeds sliced children, so the output's gradient is summed over ranks
    partial  kept whole; it sees only this rank's slice, so its parameters' gradients are summed over ranks
    heads    one number per head, of which each rank keeps those of its heads; nothing to communicate

Names do not change, so a checkpoint fits any number of ranks. A module that reads its sizes from its
weights needs to know nothing of this. Shoeybi et al. 2019 (arXiv:1909.08053).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from groundup.config import nearest
from groundup.parallel.collectives import copy_to_ranks, sum_over_ranks

WORDS = ("col", "row", "shared", "partial", "heads")


@dataclass(frozen=True)
class Cut:
    """How one child is cut over `size` ranks.

    `word` is its table entry, except that a `col` child with fewer heads than ranks becomes `shared`: it
    stays whole and each rank reads the one head it needs, `head` channels wide.
    """

    path: str
    child: nn.Module
    word: str
    head: int = 1


def cuts(model: nn.Module, size: int) -> list[Cut]:
    """Every declared child of the model. Raises ValueError when something does not divide by `size`."""
    return [
        _cut(f"{path}.{name}".removeprefix("."), module, name, word, size)
        for path, module in model.named_modules()
        for name, word in getattr(module, "shard", {}).items()
        if isinstance(getattr(module, name), nn.Module)  # a slot may be empty: the gate of a plain MLP
    ]


def _cut(path: str, module: nn.Module, name: str, word: str, size: int) -> Cut:
    child = getattr(module, name)
    if word not in WORDS:
        raise ValueError(f"{path}: shard word {word!r}{nearest(word, WORDS)}")
    if word in ("shared", "partial"):
        return Cut(path, child, word)
    # Attention is cut between heads, never through one.
    head = 1 if word == "heads" else _head_width(module, name)
    rows = len(child.values) if hasattr(child, "values") else child.weight.shape[1 if word == "row" else 0]
    units = rows // head
    if units % size == 0:
        return Cut(path, child, word)
    if word == "col" and head > 1 and size % units == 0:
        return Cut(path, child, "shared", head)
    what = f"{units} heads" if head > 1 or word == "heads" else f"{units} channels"
    raise ValueError(f"{path}: {what} cannot be divided over {size} tensor-parallel ranks")


def _head_width(module: Any, name: str) -> int:
    """Channels of one head in this child's output (input, for a row)."""
    config = getattr(module, "config", None)
    return getattr(module, "head_widths", {}).get(name, getattr(config, "d_head", 1))


def tensor_parallel(model: nn.Module, group: dist.ProcessGroup | None = None) -> nn.Module:
    """Cut `model` in place, for this rank of the group, and return it. Every rank must hold the same weights.

    Build optimizers afterwards: the parameters are new objects. Raises ValueError as `cuts` does.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    for cut in cuts(model, size):
        match cut.word:
            case "col":
                _keep_rows(cut.child, rank, size, group)
            case "row":
                _keep_columns(cut.child, rank, size, group)
            case "shared":
                _share_output(cut, rank, size, group)
            case "partial":
                _sum_gradients(cut.child, group)
            case "heads":
                _keep_heads(cut.child, rank, size)
    return model


def full_parameters(
    model: nn.Module,
    group: dist.ProcessGroup | None = None,
    value: Callable[[Tensor], Any] = Tensor.detach,
) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor) of every parameter of a cut model, slices gathered from all ranks.

    A collective: every rank has to run through it. `value` picks what to gather, such as the gradient.
    """
    size = dist.get_world_size(group)
    dims = {
        f"{path}.{name}": dim
        for path, module in model.named_modules()
        for name, dim in getattr(module, "cut_dims", {}).items()
    }
    for name, parameter in model.named_parameters():
        local = value(parameter).contiguous()
        if name in dims:
            parts = [torch.empty_like(local) for _ in range(size)]
            dist.all_gather(parts, local, group=group)
            local = torch.cat(parts, dims[name])
        yield name, local


def _slice(parameter: nn.Parameter, dim: int, rank: int, size: int) -> nn.Parameter:
    return nn.Parameter(parameter.detach().chunk(size, dim)[rank].clone(), parameter.requires_grad)


def _keep_rows(linear: Any, rank: int, size: int, group: dist.ProcessGroup | None) -> None:
    linear.cut_dims = dict.fromkeys(dict(linear.named_parameters(recurse=False)), 0)
    for name in linear.cut_dims:
        setattr(linear, name, _slice(getattr(linear, name), 0, rank, size))
    linear.register_forward_pre_hook(lambda _, inputs: (copy_to_ranks(inputs[0], group), *inputs[1:]))


def _keep_heads(numbers: Any, rank: int, size: int) -> None:
    if hasattr(numbers, "values"):  # fixed, so not a parameter
        share = len(numbers.values) // size
        numbers.values = numbers.values[rank * share : (rank + 1) * share]
    else:
        numbers.cut_dims = {"weight": 0}
        numbers.weight = _slice(numbers.weight, 0, rank, size)


def _keep_columns(linear: Any, rank: int, size: int, group: dist.ProcessGroup | None) -> None:
    linear.cut_dims = {"weight": 1}
    linear.weight = _slice(linear.weight, 1, rank, size)
    inner = linear.forward

    def forward(x: Tensor) -> Tensor:
        # Every rank would add the bias once, so it is taken out of the sum and added after it.
        bias, linear.bias = linear.bias, None
        try:
            total = sum_over_ranks(inner(x), group)
        finally:
            linear.bias = bias
        return total if bias is None else total + bias.to(total.dtype)

    linear.forward = forward


def _share_output(cut: Cut, rank: int, size: int, group: dist.ProcessGroup | None) -> None:
    def hook(child: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = copy_to_ranks(output, group)
        if cut.head == 1:
            return output
        heads = output.shape[-1] // cut.head
        return output.narrow(-1, rank * heads // size * cut.head, cut.head)

    cut.child.register_forward_hook(hook)


def _sum_gradients(module: nn.Module, group: dist.ProcessGroup | None) -> None:
    def total(gradient: Tensor) -> Tensor:
        result = gradient.contiguous().clone()
        dist.all_reduce(result, group=group)
        return result

    for parameter in module.parameters():
        parameter.register_hook(total)
