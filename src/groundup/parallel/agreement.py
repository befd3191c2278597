"""What ranks must have alike, and who has not: a mistake, or a bit that memory has lost, is then named.

    check_alike    the same model on every rank, before it is cut or copied: names, shapes, types, perhaps values
    check_copies   the same bits in what all ranks should have computed alike, now and then in a run

A hash of a description, or a sum of a tensor's bits, is all that travels, unless something differs. Any one flipped
bit changes such a sum: by a power of two, which is not 0 modulo 2^64.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
MOST_NAMES = 3


def check_alike(model: nn.Module, group: dist.ProcessGroup | None = None, *, values: bool = False) -> None:
    """Raise ValueError, on every rank, unless all have the same parameters and buffers in the same order.

    Names, shapes, types and what is frozen count; with `values`, those of the parameters, too. The message names the
    first rank and tensor that differ from rank 0.
    """
    lines = [f"parameter {name} {_describe(p)}" for name, p in model.named_parameters()]
    lines += [f"buffer {name} {_describe(tensor)}" for name, tensor in model.named_buffers()]
    device = _device_of([*model.parameters(), *model.buffers()])
    digests = texts_of_ranks(hashlib.sha256("\n".join(lines).encode()).hexdigest(), device, group)
    if len(set(digests)) > 1:
        raise ValueError(
            _first_difference([text.split("\n") for text in texts_of_ranks("\n".join(lines), device, group)])
        )
    if values and (found := _other_values({n: p for n, p in model.named_parameters() if not p.is_meta}, device, group)):
        name, ranks = next(iter(found.items()))
        rank = next(rank for rank, total in enumerate(ranks) if total != ranks[0])
        raise ValueError(
            f"models differ between ranks: rank {rank} has other values in {name} than rank 0; every rank must build "
            "the same model"
        )


def check_copies(tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Raise RuntimeError, on every rank, unless each tensor has the same bits on all ranks of the group.

    Where most ranks agree the others are named; of two ranks nobody can say which one is right. Every rank gives the
    same names in the same order.
    """
    found = _other_values(tensors, _device_of(tensors.values()), group)
    if not found:
        return
    wrong = [_minority(ranks) for ranks in found.values()]
    who = ", ".join(str(rank) for rank in sorted(set().union(*wrong))) if all(wrong) else ""
    more = f" and {len(found) - MOST_NAMES} more" if len(found) > MOST_NAMES else ""
    names = ", ".join(list(found)[:MOST_NAMES]) + more
    raise RuntimeError(
        (f"rank {who} has other bits than the others in {names}" if who else f"ranks have different bits in {names}")
        + ", though all compute them alike: memory or a processor failed, or one rank went its own way"
    )


def texts_of_ranks(text: str, device: torch.device, group: dist.ProcessGroup | None = None) -> list[str]:
    """Every rank's text, in their order."""
    own = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
    ranks = range(dist.get_world_size(group))
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in ranks]
    dist.all_gather(sizes, torch.tensor([len(own)], device=device), group=group)
    room = max(int(size) for size in sizes)
    padded = [torch.zeros(room, dtype=torch.uint8, device=device) for _ in ranks]
    dist.all_gather(padded, torch.cat([own, own.new_zeros(room - len(own))]), group=group)
    return [bytes(t[: int(n)].tolist()).decode() for t, n in zip(padded, sizes, strict=True)]


def _other_values(
    tensors: Mapping[str, Tensor], device: torch.device, group: dist.ProcessGroup | None
) -> dict[str, list[int]]:
    """{tensor: the sum of its bits on each rank} of those that are not the same on all."""
    if not tensors:
        return {}
    own = torch.stack([_checksum(tensor).to(device) for tensor in tensors.values()])
    sums = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sums, own, group=group)
    table = torch.stack(sums, 1)
    different = (table != table[:, :1]).any(1).tolist()
    return {name: row.tolist() for name, row, other in zip(tensors, table, different, strict=True) if other}


def _checksum(tensor: Tensor) -> Tensor:
    words = tensor.detach().contiguous().reshape(-1)
    return words.view(_WORDS[words.element_size()]).sum(dtype=torch.int64)


def _minority(values: list[int]) -> set[int]:
    """The ranks that differ from more than half of all; nobody, where there is no such half."""
    usual, count = Counter(values).most_common(1)[0]
    return {rank for rank, value in enumerate(values) if value != usual} if 2 * count > len(values) else set()


def _describe(tensor: Tensor) -> str:
    frozen = "" if tensor.requires_grad else " without gradient"
    return f"of shape {tuple(tensor.shape)} and {str(tensor.dtype).removeprefix('torch.')}{frozen}"


def _device_of(tensors: Iterable[Tensor]) -> torch.device:
    return next((tensor.device for tensor in tensors if not tensor.is_meta), torch.device("cpu"))


def _first_difference(texts: list[list[str]]) -> str:
    first = texts[0]
    rank, other = next((rank, lines) for rank, lines in enumerate(texts) if lines != first)
    pairs = enumerate(zip(first, other, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(first), len(other)))
    ours, theirs = (lines[at] if at < len(lines) else "nothing more" for lines in (first, other))
    return f"models differ between ranks: rank 0 has {ours}, where rank {rank} has {theirs}"
