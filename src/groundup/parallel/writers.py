"""Who writes what: every part of every tensor once, by a rank that has it, and as many bytes by each as can be.

    rank 0 has   norm  w[0:4]        writes   w[0:4]
    rank 1 has   norm  w[4:8]                 w[4:8]
    rank 2 has   norm  w[0:4]                 norm
    rank 3 has   norm  w[4:8]                 -

All ranks come to the same answer from all ranks' descriptions, which only change when the model or the plan does.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from groundup.parallel.checkpoint_index import dtype_name, dtype_named
from groundup.parallel.regions import Region, check_cover
from groundup.parallel.stored_parts import Piece


@dataclass(frozen=True)
class Whole:
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Division:
    """The whole tensors, and what each rank writes of them: {name: {rank: its part}}."""

    tensors: dict[str, Whole]
    parts: dict[str, dict[int, Region]]

    def of(self, rank: int) -> list[str]:
        """The names of the tensors of which this rank writes its part."""
        return [name for name, parts in self.parts.items() if rank in parts]


def describe(pieces: Mapping[str, Piece]) -> str:
    """What a rank has, as text: names, whole shapes, types, and where its parts lie."""
    return json.dumps(
        {
            name: [list(piece.shape), dtype_name(piece.tensor.dtype), piece.region.box, piece.region.run]
            for name, piece in pieces.items()
        }
    )


def divide(descriptions: Sequence[str]) -> Division:
    """From every rank's description, in the order of ranks.

    Raises ValueError where ranks differ about a tensor, and where their parts do not make up a whole one.
    """
    tensors: dict[str, Whole] = {}
    holders: dict[str, dict[Region, list[int]]] = {}
    for rank, text in enumerate(descriptions):
        for name, (shape, dtype, box, run) in json.loads(text).items():
            whole = Whole(tuple(shape), dtype_named(dtype))
            if tensors.setdefault(name, whole) != whole:
                raise ValueError(f"{name} is {whole} on rank {rank}, elsewhere {tensors[name]}")
            region = Region(tuple((a, b) for a, b in box), run and (run[0], run[1]))
            if region.numel:
                holders.setdefault(name, {}).setdefault(region, []).append(rank)
    for name, whole in tensors.items():
        try:
            check_cover(whole.shape, list(holders.get(name, ())))
        except ValueError as error:
            raise ValueError(f"{name} on all ranks together: {error}") from error
    return Division(tensors, _balance(tensors, holders, len(descriptions)))


def _balance(
    tensors: Mapping[str, Whole], holders: Mapping[str, Mapping[Region, Sequence[int]]], ranks: int
) -> dict[str, dict[int, Region]]:
    """What one rank alone has is its own; the rest goes, from large to small, to those that have it and least to do."""
    load = [0] * ranks
    parts = [
        (region.numel * tensors[name].dtype.itemsize, name, region, have)
        for name, regions in holders.items()
        for region, have in regions.items()
    ]
    division: dict[str, dict[int, Region]] = {name: {} for name in tensors}
    for size, name, region, have in sorted(parts, key=lambda part: (len(part[3]) > 1, -part[0])):
        rank = min(have, key=lambda rank: (load[rank], rank))
        load[rank] += size
        division[name][rank] = region
    return division
