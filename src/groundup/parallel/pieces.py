"""What this rank has of a model and its optimizer, whatever cut them: what a checkpoint saves and fills.

    parts = Parts.of_engine(engine)                                 a model that an engine runs under a plan
    parts = Parts.of_modules([model], optimizer, tensor_group)      one that was cut by hand

Each way to cut leaves its own traces, which are read here:

    fully_shard                          a run of the tensor's elements (flat.py)
    tensor_parallel, expert_parallel     `cut_dims`: one of equal ranges along an axis
    torch's engine                       `pieces`: along which axes of the plan, in their order
    anything else                        whole tensors
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from groundup.parallel.expert import dealt_parameters
from groundup.parallel.fsdp import sharding
from groundup.parallel.plan import Mesh
from groundup.parallel.regions import Range, Region
from groundup.parallel.sharded_state import members, state_device
from groundup.parallel.stored_parts import Piece


class Stepped(NamedTuple):
    """A parameter that this rank's optimizer updates, and who does."""

    name: str
    parameter: Tensor
    piece: Piece
    member: Any
    group: dict[str, Any]


class Slice(NamedTuple):
    """The index-th of `count` equal ranges along an axis."""

    axis: int
    index: int
    count: int


@dataclass
class Parts:
    """This rank's part of a model and its optimizer.

    parameters: by the first of their names, as the optimizer knows them, and where they lie. buffers: those of the
    model's state, which are whole. optimizer: one that keeps its state by parameter; None: weights only.
    """

    parameters: dict[str, tuple[Tensor, Piece]]
    buffers: dict[str, Piece]
    optimizer: Any = None

    @classmethod
    def of_modules(
        cls,
        modules: Sequence[nn.Module],
        optimizer: Any = None,
        tensor_group: dist.ProcessGroup | None = None,
        expert_group: dist.ProcessGroup | None = None,
    ) -> "Parts":
        """Of modules under the model's names: a pipeline's chunks, else one. The optimizer may be within `ZeRO`.

        The groups are those that `tensor_parallel` and `expert_parallel` were given.
        """
        parameters = {}
        for module in modules:
            runs, slices = _runs(module), _slices(module, tensor_group, expert_group)
            for name, p in module.named_parameters():
                parameters[name] = p, _piece(p, runs.get(name), slices.get(name))
        return cls(parameters, _buffers(modules), _inner(optimizer))

    @classmethod
    def of_engine(cls, engine: Any) -> "Parts":
        """Of a model that an engine's `apply_plan` gave."""
        if not hasattr(engine, "pieces"):
            groups = engine.mesh.group("tensor"), engine.mesh.group("expert")
            return cls.of_modules(engine.modules, engine.optimizer, *groups)
        parameters = {}
        for name, p in engine.named_parameters():
            cut = engine.pieces[name]
            parameters[name] = p, Piece(p.detach(), tuple(cut.shape), region_of_cuts(cut.shape, cut.cuts, engine.mesh))
        return cls(parameters, _buffers(engine.modules), _inner(engine.optimizer))

    @property
    def weights(self) -> dict[str, Piece]:
        """Parameters and buffers."""
        return {name: piece for name, (_, piece) in self.parameters.items()} | self.buffers

    def stepped(self) -> Iterator[Stepped]:
        """What this rank's optimizer updates. ValueError for a parameter that is not the model's."""
        places = {p: (name, piece) for name, (p, piece) in self.parameters.items()}
        for member in members(self.optimizer) if self.optimizer is not None else ():
            for group in member.param_groups:
                for p in group["params"]:
                    if p not in places:
                        raise ValueError(f"the optimizer has a parameter that is not the model's, {tuple(p.shape)}")
                    name, piece = places[p]
                    yield Stepped(name, p, piece, member, group)

    def states(self) -> Iterator[tuple[str, str, Piece]]:
        """(parameter, key, piece) of the optimizer's states on this rank. ValueError as `state_piece`."""
        for name, p, piece, member, _ in self.stepped():
            for key, value in member.state.get(p, {}).items():
                if value is not None:
                    yield name, key, state_piece(torch.as_tensor(value), p, piece)


def state_piece(state: Tensor, p: Tensor, piece: Piece) -> Piece:
    """Where a state lies: where its parameter does if it has its shape; a scalar, and what a whole one has, are whole.

    Raises ValueError for one of another shape of a parameter that is cut: what it says of the whole is not known.
    """
    if state.shape == p.shape:
        return Piece(state.detach(), piece.shape, piece.region)
    if state.dim() and piece.region != Region.whole(piece.shape):
        raise ValueError(f"a state of shape {tuple(state.shape)} of a piece of shape {tuple(p.shape)} of a parameter")
    return Piece.whole(state)


def new_state(at: Stepped, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for this rank's part of a state whose whole shape is `shape`.

    Raises ValueError for a shape that is no state of the parameter, before any memory is taken.
    """
    device = state_device(at.member, at.parameter, at.group, key)
    if shape == at.piece.shape:
        return torch.empty_like(at.parameter, dtype=dtype, device=device, requires_grad=False)
    declared = at.member.state_shapes(at.parameter, at.group) if hasattr(at.member, "state_shapes") else {}
    whole = at.piece.region == Region.whole(at.piece.shape)
    if shape and not (whole and shape == tuple(declared.get(key, ()))):
        raise ValueError(f"{key} of {at.name} has shape {shape}, which no state of shape {at.piece.shape} has")
    return torch.empty(shape, dtype=dtype, device=device)


def _runs(model: nn.Module) -> dict[str, tuple[torch.Size, Range]]:
    """Of each parameter in a flat shard: what was cut, and the run of it that is here."""
    found = {}
    for path, module in model.named_modules():
        for flat in sharding(module).flats if hasattr(module, "_sharding") else ():
            for slot in flat.slots:
                size = slot.piece.stop - slot.piece.start
                start = flat.rank * flat.length + slot.piece.start - slot.start if size else 0
                found[f"{path}.{slot.name}".removeprefix(".")] = slot.shape, (start, start + size)
    return found


def region_of_cuts(shape: Sequence[int], cuts: Sequence[tuple[str, int]], mesh: Mesh) -> Region:
    """What is left for this rank when a tensor is cut along axes of the plan, (axis of the plan, dim) one by one.

    Each time as torch.chunk does: in ranges of equal size, the last ones shorter or empty.
    """
    box = [(0, size) for size in shape]
    for axis, dim in cuts:
        low, high = box[dim]
        size = -(-(high - low) // mesh.size(axis))
        start = low + mesh.place[axis] * size
        box[dim] = min(start, high), min(start + size, high)
    return Region(tuple(box))


def _slices(model: nn.Module, tensor_group: Any, expert_group: Any) -> dict[str, Slice]:
    dealt, found = dealt_parameters(model), {}
    for path, module in model.named_modules():
        for inner, dim in getattr(module, "cut_dims", {}).items():
            name = f"{path}.{inner}".removeprefix(".")
            group = expert_group if name in dealt else tensor_group
            found[name] = Slice(dim, dist.get_rank(group), dist.get_world_size(group))
    return found


def _piece(tensor: Tensor, run: tuple[torch.Size, Range] | None, cut: Slice | None) -> Piece:
    shape = list(tensor.shape if run is None else run[0])
    box = [(0, size) for size in shape]
    if cut is not None:
        size = shape[cut.axis]
        box[cut.axis] = cut.index * size, (cut.index + 1) * size
        shape[cut.axis] = cut.count * size
    return Piece(tensor.detach(), tuple(shape), Region(tuple(box), run and run[1]))


def _buffers(modules: Sequence[nn.Module]) -> dict[str, Piece]:
    found = {}
    for module in modules:
        known = dict(module.named_parameters(remove_duplicate=False))
        for name, tensor in module.state_dict(keep_vars=True).items():
            if name not in known and isinstance(tensor, Tensor):
                found[name] = Piece.whole(tensor.detach())
    return found


def _inner(optimizer: Any) -> Any:
    """The optimizer that keeps the states: within `ZeRO`, or torch's ZeroRedundancyOptimizer."""
    return getattr(optimizer, "optimizer", getattr(optimizer, "optim", optimizer))
