"""The norm of a gradient of which each rank has a part, or a copy, or nothing.

               tensor 0             tensor 1
    data 0     rows 0..3, norm      rows 4..7            of w, which is cut: both count
    data 1     the same             the same             copies: nobody counts
                                                         of norm, which is not cut: the first rank counts

Each parameter's norm comes first, and then the norm of these norms, as `optim.clip_by_global_norm` does on one process:
where nothing is cut the bits are the same.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from groundup.parallel.plan import AXES
from groundup.parallel.rank_order import sum_in_rank_order
from groundup.parallel.slices import Slices


@torch.no_grad()
def global_norm(slices: Slices, shared: Mapping[str, int]) -> Tensor:
    """The Euclidean norm over all ranks' gradients, the same on every rank: a collective.

    shared: {a parameter that several stages of a pipeline hold: the first of them}.
    """
    plan = slices.mesh.plan
    norms = _own_norms(slices)
    if plan.zero == 0 and plan.shard * plan.tensor * plan.expert * plan.pipeline == 1:
        return torch.linalg.vector_norm(torch.stack(list(norms.values()))) if norms else torch.zeros(())
    places = {name: place for place, name in enumerate(slices.names.trained)}
    parameters = list(slices.own.values())
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
    parts = torch.zeros(2, len(places), dtype=dtype, device=parameters[0].device)
    for name, norm in norms.items():
        if _counts(name, slices, shared):
            cut = bool(slices.divided(name))
            parts[int(cut), places[name]] = norm.to(dtype).square() if cut else norm
    one, squares = sum_in_rank_order(parts)  # of what one rank has, and of what several have parts of
    return torch.linalg.vector_norm(one + squares.sqrt())


def _own_norms(slices: Slices) -> dict[str, Tensor]:
    grads = {name: p.grad for name, p in slices.own.items() if p.grad is not None}
    found = torch._foreach_norm(list(grads.values())) if grads else []  # pyright: ignore[reportPrivateImportUsage]
    return dict(zip(grads, found, strict=True))


def _counts(name: str, slices: Slices, shared: Mapping[str, int]) -> bool:
    """Whether this rank has something of the gradient that no rank before it has."""
    place, divided = slices.mesh.place, slices.divided(name)
    if slices.mesh.plan.zero:
        divided = divided | {"data", "context"}  # only owners have gradients
    copies = [axis for axis in AXES if axis not in divided and axis != "pipeline"]
    return all(place[axis] == 0 for axis in copies) and shared.get(name, place["pipeline"]) == place["pipeline"]
