"""The same model on every rank: compared by names and shapes, then overwritten with rank 0's values."""

import hashlib

import torch
import torch.distributed as dist
from torch import Tensor, nn


def replicate(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Give every rank of the group its rank 0's parameters and buffers.

    Raises ValueError, on every rank, where a rank's parameter or buffer has another name, shape, dtype or
    `requires_grad` than rank 0's, naming the first such rank and tensor.
    """
    check_alike(model, group)
    for tensor in [*model.parameters(), *model.buffers()]:
        values = tensor.detach().contiguous()
        dist.broadcast(values, group=group, group_src=0)
        if values.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(values)


def check_alike(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Raise ValueError as `replicate` does. Hashes are compared first, since texts of large models are long."""
    tensors = [("parameter", *item) for item in model.named_parameters()]
    tensors += [("buffer", *item) for item in model.named_buffers()]
    lines = [f"{kind} {name} {_describe(tensor)}" for kind, name, tensor in tensors]
    device = next((tensor.device for _, _, tensor in tensors), torch.device("cpu"))
    digests = texts_of_ranks(hashlib.sha256("\n".join(lines).encode()).hexdigest(), device, group)
    if len(set(digests)) == 1:
        return
    first, *others = (text.split("\n") for text in texts_of_ranks("\n".join(lines), device, group))
    for rank, other in enumerate(others, 1):
        if first != other:
            at = next((i for i, pair in enumerate(zip(first, other, strict=False)) if pair[0] != pair[1]), None)
            at = min(len(first), len(other)) if at is None else at
            ours, theirs = (lines[at] if at < len(lines) else "nothing more" for lines in (first, other))
            raise ValueError(f"models differ between ranks: rank 0 has {ours}, where rank {rank} has {theirs}")


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


def _describe(tensor: Tensor) -> str:
    frozen = "" if tensor.requires_grad else " without gradient"
    return f"of shape {tuple(tensor.shape)} and {str(tensor.dtype).removeprefix('torch.')}{frozen}"
