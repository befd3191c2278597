"""Data parallelism, as the trainer needs it: sums over ranks, and decisions that all ranks share."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

BUCKET_BYTES = 25 << 20


def world_size() -> int:
    """Ranks that train together: 1 unless `torch.distributed` is initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this rank writes logs and checkpoints."""
    return world_size() == 1 or dist.get_rank() == 0


def sum_over_ranks(tensors: list[Tensor]) -> None:
    """Replace each tensor by its sum over ranks, in buckets that make few, large messages.

    Two ranks give the same bits as two accumulated micro-batches, since a + b = b + a. With more ranks the
    library's order of addition is its own; under `torch.use_deterministic_algorithms` buckets are gathered
    and added in rank order instead, which is the order of accumulation, for N times the traffic.
    """
    if world_size() == 1 or isinstance(tensors[0], FakeTensor):  # a rehearsal has nobody to add to
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        if world_size() > 2 and torch.are_deterministic_algorithms_enabled():
            flat = _sum_in_rank_order(flat)
        else:
            dist.all_reduce(flat)
        for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def largest_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """The elementwise largest of every rank's values, so that all ranks take the same decision."""
    if world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float32, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.tolist()


def texts_of_ranks(text: str, device: torch.device) -> list[str]:
    """Every rank's text, in their order."""
    if world_size() == 1:
        return [text]
    own = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(own)], device=device))
    room = max(int(size) for size in sizes)
    padded = [torch.zeros(room, dtype=torch.uint8, device=device) for _ in range(world_size())]
    dist.all_gather(padded, torch.cat([own, own.new_zeros(room - len(own))]))
    return [bytes(t[: int(n)].tolist()).decode() for t, n in zip(padded, sizes, strict=True)]


def _sum_in_rank_order(flat: Tensor) -> Tensor:
    parts = [torch.empty_like(flat) for _ in range(world_size())]
    dist.all_gather(parts, flat)
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


def _buckets(tensors: list[Tensor]) -> list[list[Tensor]]:
    buckets: list[list[Tensor]] = []
    room, dtype = 0, None
    for tensor in tensors:
        if tensor.nbytes > room or tensor.dtype != dtype:
            buckets.append([])
            room, dtype = BUCKET_BYTES, tensor.dtype
        buckets[-1].append(tensor)
        room -= tensor.nbytes
    return buckets
