"""Tensor parallelism applied from outside: each rank keeps the slices that modules' `shard` tables name.

    rank 0      f  up[:h/2]   act  down[:, :h/2]  \\
            x                                       g  y       h hidden channels, half of them on each rank:
    rank 1      f  up[h/2:]   act  down[:, h/2:]  /            nothing is sent between up and down

    forward     f passes x on              g sums the partial outputs over ranks
    backward    f sums the gradients of x  g passes the gradient on

So a layer sends two all-reduces of its activations forward, after attention and after the feed-forward layer, and two
backward: children that read the same tensor add its gradients up before they are summed over ranks. Attention is cut
the same way, with heads for channels.

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
    """How one child of `owner`, whose table says so, is cut over `size` ranks.

    `word` is its table entry, except that a `col` child with fewer heads than ranks becomes `shared`: it
    stays whole and each rank reads the one head it needs, `head` channels wide.
    """

    path: str
    child: nn.Module
    owner: nn.Module
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
        return Cut(path, child, module, word)
    # Attention is cut between heads, never through one.
    head = 1 if word == "heads" else _head_width(module, name)
    rows = len(child.values) if hasattr(child, "values") else child.weight.shape[1 if word == "row" else 0]
    units = rows // head
    if units % size == 0:
        return Cut(path, child, module, word)
    if word == "col" and head > 1 and size % units == 0:
        return Cut(path, child, module, "shared", head)
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
    size = dist.get_world_size(group)
    for cut in cuts(model, size):
        keep_slice(cut, dist.get_rank(group), size)
        communicate(cut, group)
    return model


def communicate(cut: Cut, group: dist.ProcessGroup | None = None) -> None:
    """What the child has to send, once its weights are cut; see the words above."""
    match cut.word:
        case "col":
            read = _read_by(cut.owner, group)
            cut.child.register_forward_pre_hook(lambda _, inputs: (read(inputs[0]), *inputs[1:]))
        case "row":
            reduce_output(cut.child, lambda x: sum_over_ranks(x, group))
        case "shared":
            rank, size = dist.get_rank(group), dist.get_world_size(group)
            cut.child.register_forward_hook(lambda _, inputs, y: own_head(cut, copy_to_ranks(y, group), rank, size))
        case "partial":
            for parameter in cut.child.parameters():
                sum_gradient(parameter, group)


class _Read:
    """What a module's `col` children read: one `copy_to_ranks` for all that read the same tensor in turn, so that their
    gradients are added before they are summed over ranks, and sent once."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.last: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.last is None or self.last[0] is not x:
            self.last = x, copy_to_ranks(x, self.group)
        return self.last[1]

    def forget(self, *_: Any) -> None:
        self.last = None


def _read_by(owner: Any, group: dist.ProcessGroup | None) -> _Read:
    """One for each owner, which forgets at the end of the owner's forward."""
    if not isinstance(getattr(owner, "columns_read", None), _Read):
        owner.columns_read = _Read(group)
        owner.register_forward_hook(owner.columns_read.forget, always_call=True)
    return owner.columns_read


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


def keep_slice(cut: Cut, rank: int, size: int) -> None:
    """Leave the child this rank's part of its weights."""
    child: Any = cut.child
    match cut.word:
        case "col":
            _slice(child, dict.fromkeys(dict(child.named_parameters(recurse=False)), 0), rank, size)
        case "row":
            _slice(child, {"weight": 1}, rank, size)
        case "heads" if hasattr(child, "values"):  # fixed, so not a parameter
            share = len(child.values) // size
            child.values = child.values[rank * share : (rank + 1) * share]
        case "heads":
            _slice(child, {"weight": 0}, rank, size)


def _slice(module: Any, dims: dict[str, int], rank: int, size: int) -> None:
    module.cut_dims = dims
    for name, dim in dims.items():
        whole = getattr(module, name)
        setattr(module, name, nn.Parameter(whole.detach().chunk(size, dim)[rank].clone(), whole.requires_grad))


def reduce_output(linear: Any, reduce: Callable[[Tensor], Tensor]) -> None:
    """Make the layer's output reduce(x W^T) + b: every rank would add the bias once, so it is added after the sum."""
    inner = linear.forward

    def forward(x: Tensor) -> Tensor:
        bias = linear.bias
        linear._parameters["bias"] = None  # past the check that it is a leaf, which a gathered one is not
        try:
            total = reduce(inner(x))
        finally:
            linear._parameters["bias"] = bias
        return total if bias is None else total + bias.to(total.dtype)

    linear.forward = forward


def own_head(cut: Cut, output: Tensor, rank: int, size: int) -> Tensor:
    """Of a child that stays whole because it has fewer heads than there are ranks, the head that this rank needs."""
    if cut.head == 1:
        return output
    heads = output.shape[-1] // cut.head
    return output.narrow(-1, rank * heads // size * cut.head, cut.head)


def sum_gradient(parameter: nn.Parameter, group: dist.ProcessGroup | None = None) -> None:
    """From now on its gradient is the sum over ranks, each of which has a part of it."""

    def total(gradient: Tensor) -> Tensor:
        result = gradient.contiguous().clone()
        dist.all_reduce(result, group=group)
        return result

    if parameter.requires_grad:
        parameter.register_hook(total)
