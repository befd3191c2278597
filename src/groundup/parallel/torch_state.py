"""Whole tensors by name, from the pieces that ranks hold, and pieces of whole tensors.

    whole  --take-->  slice of the tensor axis  --take-->  part of the shard axis = piece
    whole  <-gather-  slice                     <-gather-  piece

A piece is said by its cuts, (axis of the plan, dimension), in the order in which they were made. Parts are those of
`torch.chunk`, as fully_shard makes them: the last may be smaller, or empty. So tensors move between any two plans, and
between the two engines, as they would with one process.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from groundup.config import nearest
from groundup.parallel.agreement import texts_of_ranks
from groundup.parallel.plan import Mesh

Cuts = tuple[tuple[str, int], ...]
State = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Piece:
    """What this rank has of a tensor of `shape`."""

    shape: torch.Size
    cuts: Cuts
    mesh: Mesh

    def take(self, whole: Tensor) -> Tensor:
        """This rank's piece of the whole tensor."""
        for axis, dim in self.cuts:
            start, length = self._part(whole.shape[dim], axis, self.mesh.place[axis])
            whole = whole.narrow(dim, start, length)
        return whole

    def gather(self, piece: Tensor) -> Tensor:
        """The whole tensor on every rank of the axes that cut it: a collective of these."""
        for number in reversed(range(len(self.cuts))):
            axis, dim = self.cuts[number]
            length = Piece(self.shape, self.cuts[:number], self.mesh)._length(dim)
            parts = [self._part(length, axis, rank)[1] for rank in range(self.mesh.size(axis))]
            padded = piece.new_zeros(*piece.shape[:dim], parts[0], *piece.shape[dim + 1 :])
            padded.narrow(dim, 0, piece.shape[dim]).copy_(piece)
            gathered = [torch.empty_like(padded) for _ in parts]
            dist.all_gather(gathered, padded, group=self.mesh.group(axis))
            piece = torch.cat([x.narrow(dim, 0, part) for x, part in zip(gathered, parts, strict=True)], dim)
        return piece

    @property
    def local_shape(self) -> torch.Size:
        """The shape of this rank's piece."""
        return torch.Size(self._length(dim) for dim in range(len(self.shape)))

    def counts(self, place: Mapping[str, int]) -> bool:
        """Whether of all ranks with this very piece the one at `place` is the first (on its stage of a pipeline)."""
        cut = {axis for axis, _ in self.cuts} | {"pipeline"}
        return not any(at for axis, at in place.items() if axis not in cut)

    def _length(self, dim: int) -> int:
        length = self.shape[dim]
        for axis, at in self.cuts:
            if at == dim:
                length = self._part(length, axis, self.mesh.place[axis])[1]
        return length

    def _part(self, length: int, axis: str, rank: int) -> tuple[int, int]:
        """(start, length) of a rank's part."""
        step = -(-length // self.mesh.size(axis))
        start = min(length, rank * step)
        return start, min(step, length - start)


class Whole:
    """The tensors of one model over all ranks: which there are, and which stages of the pipeline hold them.

    names: {each name of the model's state: the first name of the same tensor}. kinds: {first name: (shape, dtype)}.
    parameters: the first names of these.
    """

    def __init__(self, model: nn.Module, stages: list[list[nn.Module]], mesh: Mesh) -> None:
        self.parameters = [name for name, _ in model.named_parameters()]
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        firsts = {id(tensor): name for name, tensor in reversed(tensors.items())}
        self.names = {name: firsts[id(tensor)] for name, tensor in model.state_dict(keep_vars=True).items()}
        self.kinds = {name: (tensors[name].shape, tensors[name].dtype) for name in self.names.values()}
        held = [{name for chunk in chunks for name in chunk.state_dict()} for chunks in stages]
        self.stages = {first: [i for i, names in enumerate(held) if first in names] for first in self.kinds}
        self.mesh = mesh

    def gather(self, pieces: Mapping[str, Piece], local: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every tensor by name, from the pieces and the buffers that this rank has. A collective."""
        device = next(iter(local.values())).device
        found = {
            name: self._spread(local.get(name), pieces.get(name), self.stages[name][0], None, (shape, dtype, device))
            for name, (shape, dtype) in self.kinds.items()
        }
        return {name: found[first] for name, first in self.names.items()}

    def load(
        self,
        given: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
        pieces: Mapping[str, Piece],
        local: Mapping[str, Tensor],
    ) -> None:
        """Copy into what this rank has its part of each whole tensor. ValueError for names and shapes that do not fit.

        Raises it also, in the end, for parameters of which nothing was given.
        """
        missing = set(self.parameters)
        pairs: Any = given.items() if isinstance(given, Mapping) else given
        for name, tensor in pairs:
            if name not in self.names:
                raise ValueError(f"load_full: the model has no tensor {name!r}{nearest(name, self.names)}")
            first = self.names[name]
            if tensor.shape != self.kinds[first][0]:
                expected = tuple(self.kinds[first][0])
                raise ValueError(f"load_full: {name} has shape {tuple(tensor.shape)}; expected {expected}")
            if (own := local.get(first)) is not None:
                own.copy_(pieces[first].take(tensor) if first in pieces else tensor)
            missing.discard(first)
        if missing:
            raise ValueError(f"load_full: nothing was given for {', '.join(sorted(missing)[:10])}")

    def gather_state(self, pieces: Mapping[str, Piece], local: State, device: torch.device, owned: bool) -> State:
        """The optimizer's state of every parameter, from what this rank has of it. A collective.

        owned: each parameter's state is on one of the ranks of `data` only.
        """
        told = {name: {key: _kind(name, key, t, pieces[name]) for key, t in s.items()} for name, s in local.items()}
        reports = [json.loads(text) for text in texts_of_ranks(json.dumps(told), device)]
        found: State = {}
        for name in self.kinds:
            holder = next((rank for rank, report in enumerate(reports) if name in report), None)
            if holder is None:
                continue
            place = self.mesh.plan.coordinates(holder)
            for key, (is_piece, shape, dtype) in reports[holder][name].items():
                own = local.get(name, {}).get(key)
                piece, data = pieces.get(name) if is_piece else None, place["data"] if owned else None
                kind = torch.Size(shape), getattr(torch, dtype), device
                found.setdefault(name, {})[key] = self._spread(own, piece, place["pipeline"], data, kind)
        return found

    def _spread(
        self,
        own: Tensor | None,
        piece: Piece | None,
        stage: int,
        data: int | None,
        kind: tuple[torch.Size, torch.dtype, torch.device],
    ) -> Tensor:
        """The whole on every rank: from the ranks of one stage, and where `data` is given from those at this place."""
        place, (shape, dtype, device) = self.mesh.place, kind
        whole = torch.empty(shape, dtype=dtype, device=device)
        if place["pipeline"] == stage:
            if data in (None, place["data"]):
                assert own is not None
                whole.copy_(own if piece is None else piece.gather(own))
            if data is not None:
                dist.broadcast(whole, group=self.mesh.group("data"), group_src=data)
        if self.mesh.size("pipeline") > 1:
            dist.broadcast(whole, group=self.mesh.group("pipeline"), group_src=stage)
        return whole


def own_state(piece: Piece, name: str, key: str, state: Tensor) -> Tensor:
    """This rank's part of a whole state of a parameter. ValueError for one that is not shaped as the parameter is."""
    if not piece.cuts or not state.dim():
        return state
    if state.shape != piece.shape:
        raise ValueError(
            f"optimizer state {key} of {name} has shape {tuple(state.shape)}, the parameter {tuple(piece.shape)}: "
            "it cannot be cut as the parameter is"
        )
    return piece.take(state)


def _kind(name: str, key: str, state: Tensor, piece: Piece) -> tuple[bool, list[int], str]:
    """(whether it is a piece, the shape of the whole, dtype)."""
    dtype = str(state.dtype).removeprefix("torch.")
    if not piece.cuts or not state.dim():
        return False, list(state.shape), dtype
    if state.shape != piece.local_shape:
        raise ValueError(
            f"optimizer state {key} of {name} has shape {tuple(state.shape)}, and this rank's piece of the parameter "
            f"{tuple(piece.local_shape)}: pieces need an optimizer that works element by element, such as AdamW"
        )
    return True, list(piece.shape), dtype
