"""Tensor and sequence parallelism by DTensor: modules' `shard` tables as placements of their parameters.

A parameter becomes a DTensor on the ranks of the axis, under its name; a module computes with the part that this rank
has. What crosses the edge of a cut module is a DTensor for a moment, too, and changes its placement there (R: whole on
every rank, S: a part of the positions, P: a part of a sum):

                     forward    backward
    input of a col   R -> R     P -> R      all-reduce of gradients
    output of a row  P -> R     R           all-reduce of outputs
    into the stream  R -> S     S -> R      from here on with sequence parallelism: all-gather of gradients
    out of it        S -> R     R -> S
    into a branch    S -> R     P -> S      all-gather, and reduce-scatter of gradients
    out of it        P -> S     S -> R      the other way round

The tables' words (`tensor.py`) as placements: col and heads Shard(0), row Shard(1), partial Replicate with a gradient
that is a part of a sum. torch's ColwiseParallel and RowwiseParallel place them alike, but take nn.Linear and
nn.Embedding alone, hand DTensors to the code inside, and divide no heads; kernels and modules here want tensors.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from groundup.parallel.sequence import branches_of, streams_of
from groundup.parallel.tensor import Cut, cuts, keep_slice, own_head, reduce_output

STREAM = Shard(1)
"""Where the residual stream (batch, seq, d_model) is cut."""


def tensor_parallel(model: nn.Module, mesh: DeviceMesh, *, sequence: bool = False) -> nn.Module:
    """Cut `model` in place over the ranks of a mesh of one axis, and return it. Every rank must hold the same weights.

    Parameters that are not cut stay as they are, unless their gradients are parts of sums (a norm of this rank's
    positions): those become DTensors that are whole everywhere. Build optimizers afterwards.

    Raises ValueError as `parallel.tensor_parallel` and `parallel.sequence_parallel` do.
    """
    streams = list(streams_of(model)) if sequence else []
    if sequence and not streams:
        raise ValueError(f"sequence parallelism: this {type(model).__name__} declares no `stream` to be cut")
    branches = [branch for path, stream in streams for branch in branches_of(path, stream)]
    regions = {branch.path for branch in branches if branch.cut}
    for cut in cuts(model, mesh.size()):
        _place(cut, mesh)
        _communicate(cut, mesh, within=cut.path.rpartition(".")[0] in regions)
    for branch in branches:
        if branch.cut:
            change_input(branch.module, lambda x: move(x, mesh, STREAM, Replicate(), Partial()))
        else:
            change_input(branch.module, lambda x: move(x, mesh, STREAM, Replicate()))
            change_output(branch.module, lambda x: split_positions(x, mesh))
    whole = {id(p) for branch in branches if not branch.cut for p in branch.module.parameters()}
    for _, stream in streams:
        _sum_uncut(stream, whole, mesh)
        change_input(stream[0], lambda x: split_positions(x, mesh))
        change_output(stream[-1], lambda x: move(x, mesh, STREAM, Replicate()).clone())  # no view, for fully_shard
    for module in _callers(model, [stream for _, stream in streams]):
        _Shown(module, mesh)
    return model


def move(
    x: Tensor, mesh: DeviceMesh, source: Placement, target: Placement, gradient: Placement | None = None
) -> Tensor:
    """What this rank has of x placed as `target`, from what it has of it placed as `source`.

    gradient: how the result's gradient is placed, if not as the result: `Partial()` where each rank uses the whole for
    its own part of the work.
    """
    placed = DTensor.from_local(x, mesh, [source], run_check=False).redistribute(placements=[target])
    return placed.to_local(grad_placements=[gradient or target])


def split_positions(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """This rank's positions of (batch, seq, ...). ValueError where they do not divide."""
    seq, size = x.shape[1], mesh.size()
    if seq % size:
        raise ValueError(
            f"sequence parallelism: {seq} tokens cannot be divided over {size} ranks; pad to "
            f"{seq + size - seq % size}, with positions of -1 and no weight in the loss"
        )
    return move(x, mesh, Replicate(), STREAM)


def change_input(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Call `change` on the first argument from now on."""
    module.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]), *inputs[1:]))


def change_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Call `change` on the output from now on."""

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return change(output)

    module.register_forward_hook(hook)


def _place(cut: Cut, mesh: DeviceMesh) -> None:
    """Make DTensors of the child's parameters."""
    child: Any = cut.child
    own = list(dict(child.named_parameters(recurse=False)))
    match cut.word:
        case "col":
            _distribute(child, own, mesh, Shard(0))
        case "row":
            _distribute(child, ["weight"], mesh, Shard(1))
        case "heads" if hasattr(child, "values"):  # fixed, so not a parameter
            keep_slice(cut, mesh.get_local_rank(), mesh.size())
        case "heads":
            _distribute(child, own, mesh, Shard(0))
        case "partial":
            _sum_gradients(child.modules(), mesh)


def _distribute(module: nn.Module, names: Iterable[str], mesh: DeviceMesh, placement: Placement) -> None:
    for name in names:
        whole = getattr(module, name)
        cut = distribute_tensor(whole.detach(), mesh, [placement], src_data_rank=None)
        setattr(module, name, nn.Parameter(cut, whole.requires_grad))


def _communicate(cut: Cut, mesh: DeviceMesh, *, within: bool) -> None:
    """What the child has to send. `within` a branch of sequence parallelism the branch's ends do most of it."""
    rank, size = mesh.get_local_rank(), mesh.size()
    match cut.word:
        case "col" if not within:
            change_input(cut.child, lambda x: _copy(x, mesh))
        case "row":
            target = STREAM if within else Replicate()
            reduce_output(cut.child, lambda x: move(x, mesh, Partial(), target))
        case "shared":
            change_output(cut.child, lambda y: own_head(cut, y if within else _copy(y, mesh), rank, size))


def _copy(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """x, the same on every rank, each of which uses it for its own part: so gradients are summed."""
    return move(x, mesh, Replicate(), Replicate(), Partial())


def _sum_uncut(stream: nn.ModuleList, whole: set[int], mesh: DeviceMesh) -> None:
    """What sees a part of the positions, or feeds a part of the heads, has a part of each gradient."""
    for module in stream.modules():
        own = module.named_parameters(recurse=False)
        _sum(module, [name for name, p in own if not isinstance(p, DTensor) and id(p) not in whole], mesh)


def _sum_gradients(modules: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    for module in modules:
        _sum(module, [name for name, _ in module.named_parameters(recurse=False)], mesh)


def _sum(module: Any, names: list[str], mesh: DeviceMesh) -> None:
    _distribute(module, names, mesh, Replicate())
    module.summed = {*getattr(module, "summed", ()), *names}


class _Shown:
    """While a module runs, this rank's parts are in the places of DTensors."""

    def __init__(self, module: nn.Module, mesh: DeviceMesh) -> None:
        self.mesh = mesh
        module.register_forward_pre_hook(self.show)
        module.register_forward_hook(self.hide, always_call=True)

    def show(self, module: nn.Module, _inputs: Any) -> None:
        for inner in module.modules():
            for name, p in list(inner._parameters.items()):
                if isinstance(p, DTensor) and p.device_mesh == self.mesh:
                    gradient = Partial() if name in getattr(inner, "summed", ()) else p.placements[0]
                    local = p.to_local(grad_placements=[gradient])
                    local._is_param = True  # type: ignore[attr-defined]  # for those who ask isinstance(_, nn.Parameter)
                    local.distributed = p  # type: ignore[attr-defined]
                    inner._parameters[name] = local  # type: ignore[assignment]

    def hide(self, module: nn.Module, _inputs: Any, _output: Any) -> None:
        for inner in module.modules():
            for name, p in list(inner._parameters.items()):
                if (distributed := getattr(p, "distributed", None)) is not None:
                    inner._parameters[name] = distributed


def _callers(model: nn.Module, streams: list[nn.ModuleList]) -> list[nn.Module]:
    """Modules whose calls reach every DTensor: those of the streams, and elsewhere those with tables."""
    inside = {id(module) for stream in streams for module in stream.modules()}
    listed = [module for stream in streams for module in stream]
    return [*listed, *(m for m in model.modules() if getattr(m, "shard", None) and id(m) not in inside)]
