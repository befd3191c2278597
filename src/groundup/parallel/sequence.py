"""Sequence parallelism: what tensor parallelism leaves whole, norms, dropout and sums, on 1 / N of the positions each.

    tensor      x  norm  f [ wq wk wv | attention | wo ] g  + x  norm  f [ up | act | down ] g  + x
                   whole       heads / N                        whole      channels / N

    sequence    x  norm  G [ wq wk wv | attention | wo ] S  + x  norm  G [ up | act | down ] S  + x
                 tokens / N    heads / N                     tokens / N    channels / N

f sums gradients and g sums outputs over ranks: an all-reduce each. G all-gathers the tokens and S reduce-scatters the
sums, and each is the other's gradient. An all-reduce is a reduce-scatter and an all-gather, so as much is sent: with X
bytes of activations in one layer, 4 (N - 1) / N X per rank, branch and step. But activations outside of the brackets
take 1 / N of the memory.

What is uncut and stands between the first norm and the last sum sees a part of the tokens, or feeds a part of the
heads: the gradients of all such parameters are parts, and summed over ranks. The embedding, the final norm and the
head have whole sequences on every rank, as in tensor parallelism.

Korthikanti et al. 2022, section 4.2.2 (arXiv:2205.05198). Their backward pass gathers the input of a branch once more
instead of keeping it whole; here activation checkpointing does that.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from groundup.kernels._compiler import untraced
from groundup.parallel.tensor import Cut, communicate, cuts, keep_slice, own_head, reduce_output, sum_gradient

Change = Callable[[Tensor, dist.ProcessGroup | None], Tensor]


@dataclass(frozen=True)
class Branch:
    """A branch of the residual stream. Not `cut`: it gets whole sequences, and all ranks compute the same."""

    path: str
    module: nn.Module
    cut: bool


def sequence_parallel(model: nn.Module, group: dist.ProcessGroup | None = None) -> nn.Module:
    """`tensor_parallel`, with the positions of the residual stream cut as well; in place. Returns the model.

    A model declares `stream`, the name of a list of modules that x (batch, seq, d_model) runs through, as first
    argument and as output; each of these declares `reads`, whose names are its branches. A branch that has a shard
    table with a `row` is cut; any other (a recurrence, a mixture of experts, attention to a source) is given whole
    sequences. Every rank is fed the same tokens and gets the whole output.

    Ranks share a seed, as the embedding's dropout has to be the same everywhere; so within the stream the tokens at
    one place of each rank's part drop the same channels.

    Raises ValueError as `cuts` does, for a model without a stream, and, when it runs, for a sequence that does not
    divide by the number of ranks.
    """
    streams = list(streams_of(model))
    if not streams:
        raise ValueError(f"sequence parallelism: this {type(model).__name__} declares no `stream` to be cut")
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    branches = [branch for path, stream in streams for branch in branches_of(path, stream)]
    regions = {branch.path for branch in branches if branch.cut}
    for cut in cuts(model, size):
        keep_slice(cut, rank, size)
        if cut.path.rpartition(".")[0] in regions:
            _communicate_within(cut, rank, size, group)
        else:
            communicate(cut, group)
    for branch in branches:
        _surround(branch, group)
    whole = {id(p) for branch in branches if not branch.cut for p in branch.module.parameters()}
    for _, stream in streams:
        for parameter in _uncut(stream):
            if id(parameter) not in whole:
                sum_gradient(parameter, group)
        _change_input(stream[0], split_sequence, group)
        _change_output(stream[-1], join_sequence, group)
    return model


def _change_input(module: nn.Module, change: Change, group: dist.ProcessGroup | None) -> None:
    """Call `change` on the first argument from now on."""
    module.register_forward_pre_hook(lambda _, inputs: (change(inputs[0], group), *inputs[1:]))


def _change_output(module: nn.Module, change: Change, group: dist.ProcessGroup | None) -> None:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return change(output, group)

    module.register_forward_hook(hook)


def streams_of(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """(path, list) of each list of modules that a residual stream runs through."""
    for path, module in model.named_modules():
        if isinstance(name := getattr(module, "stream", None), str):
            stream = getattr(module, name)
            assert isinstance(stream, nn.ModuleList), f"{path}.{name} is a {type(stream).__name__}, not a ModuleList"
            yield f"{path}.{name}".removeprefix("."), stream


def branches_of(path: str, stream: nn.ModuleList) -> Iterator[Branch]:
    """The branches of all modules of a stream."""
    for number, module in enumerate(stream):
        for name, what in getattr(module, "reads", {}).items():
            if (branch := getattr(module, name)) is not None:
                words = getattr(branch, "shard", {})
                yield Branch(f"{path}.{number}.{name}", branch, what != "source" and "row" in words.values())


def _communicate_within(cut: Cut, rank: int, size: int, group: dist.ProcessGroup | None) -> None:
    """In a branch every gradient is this rank's part of a sum, which the branch's own ends and `sum_gradient` make."""
    if cut.word == "row":
        reduce_output(cut.child, lambda x: _leave(x, group))
    elif cut.word == "shared":
        _change_output(cut.child, lambda y, _: own_head(cut, y, rank, size), group)


def _surround(branch: Branch, group: dist.ProcessGroup | None) -> None:
    _change_input(branch.module, _enter if branch.cut else join_sequence, group)
    if not branch.cut:
        _change_output(branch.module, split_sequence, group)


def _uncut(stream: nn.ModuleList) -> list[nn.Parameter]:
    """Each parameter once that tensor parallelism left whole."""
    found = {
        id(parameter): parameter
        for module in stream.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name not in getattr(module, "cut_dims", {})
    }
    return list(found.values())


class _Move(torch.autograd.Function):
    """One of the functions below forward, another one backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(gradients[0]), None, None


@untraced
def _move(x: Tensor, there: Callable[..., Tensor], back: Callable[..., Tensor], group: Any) -> Tensor:
    there, back = functools.partial(there, group=group), functools.partial(back, group=group)
    return _Move.apply(x, there, back)  # type: ignore[return-value]


def split_sequence(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """This rank's positions of (batch, seq, ...), which is the same on all ranks. Gradients are gathered."""
    return _move(x, _own_slice, _gather, group)


def join_sequence(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The whole sequence, with which all ranks do the same: so each takes the gradient of its positions."""
    return _move(x, _gather, _own_slice, group)


def _enter(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The whole sequence, of which each rank makes a part of a sum: so their gradients are summed."""
    return _move(x, _gather, _reduce_scatter, group)


def _leave(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over ranks, at this rank's positions."""
    return _move(x, _reduce_scatter, _gather, group)


def _gather(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, 1)


def _reduce_scatter(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    parts = [part.contiguous() for part in _slices(x, group)]
    total = torch.empty_like(parts[0])
    dist.reduce_scatter(total, parts, group=group)
    return total


def _own_slice(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    return _slices(x, group)[dist.get_rank(group)].clone()  # not a view, which would keep the whole in memory


def _slices(x: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, ...]:
    seq, size = x.shape[1], dist.get_world_size(group)
    if seq % size:
        raise ValueError(
            f"sequence parallelism: {seq} tokens cannot be divided over {size} ranks; pad to "
            f"{seq + size - seq % size}, with positions of -1 and no weight in the loss"
        )
    return x.chunk(size, 1)
