"""What every rank must have alike, compared before anything is cut: a mistake is then named, not a hang."""

from collections.abc import Sequence
from itertools import zip_longest

import torch
import torch.distributed as dist
from torch import Tensor, nn

from groundup.parallel.replicate import texts_of_ranks

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def require_same_model(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Raise ValueError, on every rank, unless all hold the same parameters: names, shapes, types and values.

    The message names the first rank and parameter that differ from rank 0. Values are compared by a sum of their bits.
    """
    named = list(model.named_parameters())
    device = next((p.device for _, p in named if not p.is_meta), torch.device("cpu"))
    ours = "\n".join(f"{name}\t{_kind(p)}\t{_checksum(p)}" for name, p in named)
    first, *others = (text.split("\n") for text in texts_of_ranks(ours, device, group))
    for rank, lines in enumerate(others, 1):
        if lines != first:
            raise ValueError(f"{_difference(first, lines, rank)}; every rank must build the same model")


def _kind(p: Tensor) -> str:
    frozen = "" if p.requires_grad else ", frozen"
    return f"{str(p.dtype).removeprefix('torch.')} {tuple(p.shape)}{frozen}"


def _checksum(p: Tensor) -> int:
    if p.is_meta:
        return 0
    return int(p.detach().contiguous().reshape(-1).view(_WORDS[p.element_size()]).sum(dtype=torch.int64))


def _difference(first: Sequence[str], lines: Sequence[str], rank: int) -> str:
    ours, theirs = next((a, b) for a, b in zip_longest(first, lines) if a != b)
    if not ours or not theirs:
        missing, name = (0, theirs) if not ours else (rank, ours)
        return f"rank {missing} lacks the parameter {(name or '').split(chr(9))[0]}, which rank {rank - missing} has"
    (name, kind, _), (other_name, other_kind, _) = ours.split("\t"), theirs.split("\t")
    if name != other_name:
        return f"rank {rank} has the parameter {other_name} where rank 0 has {name}"
    if kind != other_kind:
        return f"rank {rank} has {name} as {other_kind}, rank 0 as {kind}"
    return f"rank {rank} has other values in {name} than rank 0"
