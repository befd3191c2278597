"""The same model on every rank: compared by names and shapes, then overwritten with rank 0's values."""

import torch.distributed as dist
from torch import nn

from groundup.parallel.agreement import check_alike


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
