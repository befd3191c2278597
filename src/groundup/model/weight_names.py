"""Where each of our tensors is in a Hugging Face file, and in which layout. The tables are in `families`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from groundup.model.interleaved import Interleaved

# Tables that older files hold beside the weights: causal masks and rotary frequencies.
IGNORED_ENDINGS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


@dataclass(frozen=True)
class Place:
    """Where a module's tensors are in a Hugging Face file, and how they differ from ours.

    name         {i} stands for the layer, {e} for the expert
    transposed   matrices are (d_in, d_out), as in GPT-2's Conv1D
    sizes, part  several matrices are one, joined along their outputs: how many outputs each has, and which is this
    offset       what their forward pass adds to the weight; ours holds the sum (Gemma's norms multiply by 1 + w)
    interleaved  rotary pairs that lie side by side
    experts      ours is a stack of so many of theirs
    """

    name: str
    transposed: bool = False
    sizes: tuple[int, ...] = ()
    part: int = 0
    offset: float = 0.0
    interleaved: Interleaved | None = None
    experts: int = 0

    def names(self, layer: str, leaf: str) -> list[str]:
        """Their tensors that hold our tensor `leaf`."""
        full = f"{self.name}.{leaf}" if leaf else self.name
        return [full.format(i=layer, e=e) for e in range(self.experts or 1)]

    def to_theirs(self, ours: Tensor) -> Tensor:
        """Our tensor, or its row of a stack, as it is in their file, before it is joined to others."""
        value = ours - self.offset if self.offset else ours
        value = self.interleaved.to_pairs(value) if self.interleaved else value
        return value.mT if self.transposed and value.ndim > 1 else value

    def to_ours(self, theirs: Tensor) -> Tensor:
        """What undoes `to_theirs`. Offsets are added in float32: bfloat16 would round 1 + w to 1."""
        value = theirs.split(self.sizes, self.axis(theirs))[self.part] if self.sizes else theirs
        value = value.mT if self.transposed and value.ndim > 1 else value
        value = self.interleaved.to_half_split(value) if self.interleaved else value
        return value.float() + self.offset if self.offset else value

    def axis(self, theirs: Tensor) -> int:
        """Where outputs are counted in a tensor of theirs."""
        return -1 if self.transposed or theirs.ndim == 1 else -2


@dataclass(frozen=True)
class FamilyWeights:
    """The names and layouts in a family's files.

    `places` maps a module of ours, or one tensor with its whole name, to its place; {i} is the layer. `prefix` is
    what a causal model puts before its inner model's names; the inner model's own files leave it out. `unused` are
    beginnings of names that a file may have and a causal model does not use.
    """

    places: Mapping[str, Place]
    prefix: str = "model."
    unused: tuple[str, ...] = ()

    def locate(self, name: str) -> tuple[Place, list[str]]:
        """The place of our tensor `name`, and the names of theirs there. KeyError if the family has none."""
        path, _, leaf = name.rpartition(".")
        steps = path.split(".")
        layer = steps[1] if steps[0] == "blocks" else ""
        module = ".".join(["blocks", "{i}", *steps[2:]]) if layer else path
        whole = self.places.get(f"{module}.{leaf}")
        place = whole or self.places[module]
        return place, place.names(layer, "" if whole else leaf)


def export_tensors(family: FamilyWeights, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under a Hugging Face class's names and in its layouts."""
    parts: dict[str, dict[int, Tensor]] = {}
    axes: dict[str, int] = {}
    for name, tensor in state.items():
        place, names = family.locate(name)
        for their_name, ours in zip(names, tensor if place.experts else [tensor], strict=True):
            value = place.to_theirs(ours)
            parts.setdefault(their_name, {})[place.part] = value
            axes[their_name] = place.axis(value)
    return {name: torch.cat([group[i] for i in sorted(group)], axes[name]) for name, group in parts.items()}


def import_tensor(family: FamilyWeights, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Our tensor `name`, taken from the tensors of a Hugging Face file."""
    place, names = family.locate(name)
    ours = [place.to_ours(tensors[n]) for n in names]
    return torch.stack(ours) if place.experts else ours[0]


def exported_shapes(family: FamilyWeights, state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """What `export_tensors` would give, as shapes only."""
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    return {name: tuple(tensor.shape) for name, tensor in export_tensors(family, meta).items()}


def exported_name(family: FamilyWeights, name: str) -> str:
    """The name of the tensor in a Hugging Face file that holds our tensor `name` (or its first expert)."""
    return family.locate(name)[1][0]


def known_names(names: Iterable[str], family: FamilyWeights) -> dict[str, str]:
    """The names in a file by their full spelling, without the tables that are not weights of a causal model."""
    prefix, names = family.prefix, list(names)
    bare = not any(name.startswith(prefix) for name in names)
    full = {prefix + n if bare and not n.startswith("lm_head.") else n: n for n in names}
    return {f: n for f, n in full.items() if not f.endswith(IGNORED_ENDINGS) and not f.startswith(family.unused)}
