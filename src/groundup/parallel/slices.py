"""A rank's part of each parameter, whatever plan cut it: whole tensors from parts, and parts from whole ones.

    w (8, 6)    tensor=2     rows 0 to 3     shard=2    their first 12 elements      rank 0
                                                        their last 12 elements       rank 1
                             rows 4 to 7                their first 12 elements      rank 2
                                                        their last 12 elements       rank 3

What lies on other stages of a pipeline is sent by the first stage that has it. So weights and the states of optimizers
go by name and as whole tensors from any plan to any other.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from groundup.config import nearest
from groundup.parallel.agreement import texts_of_ranks
from groundup.parallel.expert import dealt_parameters
from groundup.parallel.flat import FlatShard, Slot
from groundup.parallel.fsdp import sharding
from groundup.parallel.plan import Mesh


class Names:
    """What a model is made of before anything is cut: its parameters' shapes, and the names of its state."""

    def __init__(self, model: nn.Module) -> None:
        self.shapes = {name: p.shape for name, p in model.named_parameters()}
        self.trained = [name for name, p in model.named_parameters() if p.requires_grad]
        first = {id(p): name for name, p in model.named_parameters()}
        self.same = {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
        self.state = list(model.state_dict())


class Slices:
    """The parts of a model that this rank has, in `modules`, which were cut over the axes of the mesh.

    cuts: {parameter: (axis, dimension)} of those that tensor or expert parallelism cut.
    """

    def __init__(self, names: Names, modules: Sequence[nn.Module], mesh: Mesh) -> None:
        self.names, self.modules, self.mesh = names, modules, mesh
        self.own = {name: p for module in modules for name, p in module.named_parameters()}
        self.cuts = {name: cut for module in modules for name, cut in _cuts(module)}
        flats = [flat for m in modules if mesh.plan.shard > 1 for flat in sharding(m).flats]
        self._flats: dict[str, tuple[FlatShard, Slot]] = {s.name: (flat, s) for flat in flats for s in flat.slots}

    def divided(self, name: str) -> set[str]:
        """The axes along which each rank has another part of this parameter, and not a copy."""
        axes = {self.cuts[name][0]} if name in self.cuts else set()
        return axes | ({"shard"} if name in self._flats else set())

    def full_state_dict(self) -> dict[str, Tensor]:
        """What `state_dict` was before the model was cut, on every rank."""
        whole = self.whole({name: p.detach() for name, p in self.own.items()})
        buffers = {name: t for m in self.modules for name, t in m.state_dict().items() if name not in self.names.same}
        whole |= self._of_all_stages(buffers)
        return {name: whole[self.names.same.get(name, name)].clone() for name in self.names.state}

    def whole(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """From tensors that are cut like these parameters the whole ones, of all stages: a collective."""
        return self._of_all_stages(dict(self._joined(dict(self._unsharded(values)))))

    @torch.no_grad()
    def load(self, given: Mapping[str, Tensor] | Any) -> None:
        """Take this rank's part of each whole tensor.

        Raises ValueError for unknown names, wrong shapes, and parameters that are missing in the end.
        """
        names, missing = self.names, set(self.names.shapes)
        buffers = {name: t for module in self.modules for name, t in module.named_buffers()}
        for name, tensor in given.items() if isinstance(given, Mapping) else given:
            first = names.same.get(name)
            if first is None and name not in names.state:
                raise ValueError(f"load_full: the model has no tensor {name!r}{nearest(name, names.state)}")
            if first is not None and tensor.shape != names.shapes[first]:
                expected = tuple(names.shapes[first])
                raise ValueError(f"load_full: {name} has shape {tuple(tensor.shape)}; expected {expected}")
            missing.discard(first or name)
            here = self.own.get(first or name, buffers.get(name))
            if here is not None:
                here.copy_(tensor if first is None else self.part(first, tensor))
        if missing:
            raise ValueError(f"load_full: nothing was given for {', '.join(sorted(missing)[:10])}")

    def part(self, name: str, whole: Tensor) -> Tensor:
        """What this rank has of a tensor that is cut like the parameter."""
        if name in self.cuts:
            axis, dim = self.cuts[name]
            whole = whole.chunk(self.mesh.size(axis), dim)[self.mesh.place[axis]]
        if name in self._flats:
            flat, slot = self._flats[name]
            return flat.piece_of(slot, whole)
        return whole

    def _unsharded(self, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        yield from ((name, value) for name, value in values.items() if name not in self._flats)
        for flat in dict.fromkeys(flat for flat, _ in self._flats.values()):
            named = {id(piece): slot.name for slot, piece in zip(flat.slots, flat.pieces, strict=True)}
            if found := [values[name] for name in named.values() if name in values]:
                like = found[0]
                parts = {key: values.get(name) for key, name in named.items()}
                whole = flat.gathered(lambda p, parts=parts, like=like: _or_zeros(parts[id(p)], p, like))
                yield from ((name, tensor) for name, tensor in whole.items() if name in values)

    def _joined(self, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for name, value in values.items():
            if name in self.cuts:
                axis, dim = self.cuts[name]
                parts = [torch.empty_like(value).contiguous() for _ in range(self.mesh.size(axis))]
                dist.all_gather(parts, value.contiguous(), group=self.mesh.group(axis))
                value = torch.cat(parts, dim)
            yield name, value

    def _of_all_stages(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """With those of the other stages of the pipeline."""
        if self.mesh.plan.pipeline == 1:
            return dict(own)
        group = self.mesh.group("pipeline")
        device = next(iter(self.own.values())).device
        text = json.dumps({name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in own.items()})
        whole: dict[str, Tensor] = {}
        for stage, theirs in enumerate(texts_of_ranks(text, device, group)):
            for name, (shape, dtype) in json.loads(theirs).items():
                if name not in whole:
                    here = stage == self.mesh.place["pipeline"]
                    whole[name] = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
                    whole[name].copy_(own[name] if here else whole[name])
                    dist.broadcast(whole[name], group=group, group_src=stage)
        return whole

    def whole_states(self, states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """{parameter: {key: whole tensor}} from this rank's states: a collective.

        Raises ValueError for a state that is neither cut like its parameter nor a single number, of one that is cut.
        """
        keys = sorted({key for states_of in states.values() for key in states_of})
        if self.mesh.plan.pipeline > 1:  # stages may have optimizers with different states
            keys = sorted({key for text in self._texts(json.dumps(keys)) for key in json.loads(text)})
        found: dict[str, dict[str, Tensor]] = {name: {} for name in self.names.shapes}
        for key in keys:
            values = {name: states[name][key].detach() for name in self.own if key in states.get(name, {})}
            alike = {name: value for name, value in values.items() if self._is_cut(name, key, value)}
            rest = {name: value for name, value in values.items() if name not in alike}
            for name, value in (self.whole(alike) | self._of_all_stages(rest)).items():
                found[name][key] = value.clone()
        return {name: states_of for name, states_of in found.items() if states_of}

    def part_of_state(self, name: str, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's part of a parameter's whole states."""
        shape = self.names.shapes[name]
        return {key: self.part(name, value) if value.shape == shape else value for key, value in states.items()}

    def _is_cut(self, name: str, key: str, value: Tensor) -> bool:
        if value.shape == self.own[name].shape:
            return True
        if value.numel() > 1 and self.divided(name):
            raise ValueError(
                f"optimizer state {key} of {name} has shape {tuple(value.shape)}, and its parameter is cut over "
                f"{', '.join(sorted(self.divided(name)))}: such a state has no whole; use an elementwise optimizer"
            )
        return False

    def _texts(self, text: str) -> list[str]:
        return texts_of_ranks(text, next(iter(self.own.values())).device, self.mesh.group("pipeline"))


def _cuts(module: nn.Module) -> Iterator[tuple[str, tuple[str, int]]]:
    dealt = dealt_parameters(module)
    for path, child in module.named_modules():
        for name, dim in getattr(child, "cut_dims", {}).items():
            full = f"{path}.{name}".removeprefix(".")
            yield full, ("expert" if full in dealt else "tensor", dim)


def _or_zeros(value: Tensor | None, piece: Tensor, like: Tensor) -> Tensor:
    return like.new_zeros(piece.shape) if value is None else value
