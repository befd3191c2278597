"""Messages between two ranks, several at a time: all that the algorithms of this room are made of.

    post(sends=[(mine, right)], receives=[(room, left)], group).wait()

Whoever sends and receives in one call cannot wait in a circle for somebody who does the same.
"""

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

Message = tuple[Tensor, int]
"""A contiguous tensor, and the rank within the group that it goes to or comes from."""


class Pending:
    """Messages on their way. Until `wait` returns, what is sent must not change and what is received is not there."""

    def __init__(self, works: list[dist.Work], tensors: list[Tensor]):
        self._works, self._tensors = works, tensors

    def wait(self) -> None:
        """Return when all have arrived (on a GPU: let its stream wait for them)."""
        for work in self._works:
            work.wait()
        self._works, self._tensors = [], []


def post(sends: Sequence[Message], receives: Sequence[Message], group: dist.ProcessGroup | None = None) -> Pending:
    """Start to send and to receive. Messages between two ranks are taken in the order in which they were posted.

    An empty tensor is not sent, since both sides know that it is empty. Receives come first: a sender that already
    knows of the room at the other end does not ask for it.
    """
    messages = [(dist.irecv, *message) for message in receives] + [(dist.isend, *message) for message in sends]
    messages = [message for message in messages if message[1].numel()]
    assert all(tensor.is_contiguous() for _, tensor, _ in messages)
    operations = [dist.P2POp(way, tensor, group=group, group_peer=peer) for way, tensor, peer in messages]
    works = dist.batch_isend_irecv(operations) if operations else []
    return Pending(works, [tensor for _, tensor, _ in messages])
