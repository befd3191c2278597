"""What the stages of a pipeline send each other: activations forward, gradients back, without waiting for the sends.

The schedules of all ranks are known, so a rank knows when a neighbour has received: once something arrives that the
neighbour did later, the message is through and its memory is free. Shapes go ahead of the first micro-batch of each
step; all others must be alike.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from groundup.parallel.schedules import Action

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool)
_HEADER, _MOST_AXES = 128, 12

Shape = tuple[torch.dtype, bool, tuple[int, ...]]
"""(type, whether a gradient comes back, sizes) of one tensor."""


class Mailbox:
    """Messages of one rank; a link is (kind, stage that receives)."""

    def __init__(
        self,
        schedules: Sequence[Sequence[Action]],
        rank: int,
        device: torch.device,
        group: dist.ProcessGroup | None,
    ) -> None:
        self.rank, self.size, self.group, self.device = rank, len(schedules), group, device
        self.places = [{action: place for place, action in enumerate(actions)} for actions in schedules]
        self.stages = self.size * (1 + max(action.chunk for action in schedules[0]))
        self.shapes: dict[tuple[str, int], list[Shape]] = {}
        self.expected: dict[tuple[str, int, int], list[tuple[Any, Tensor]]] = {}
        self.sent: list[tuple[int, Action, Any, Tensor]] = []
        self.local: dict[tuple[str, int, int], list[Tensor]] = {}

    def receive(self, action: Action) -> list[Tensor]:
        """What the neighbour sent for this action; [] where nothing comes (the first stage, and a loss)."""
        stage = action.chunk * self.size + self.rank
        source = stage - 1 if action.kind == "forward" else stage + 1
        if not 0 <= source < self.stages:
            return []
        if source % self.size == self.rank:
            return self.local.pop((action.kind, stage, action.microbatch))
        self._post(action, stage, source % self.size)
        messages = self.expected.pop((action.kind, stage, action.microbatch))
        for work, _ in messages:
            work.wait()
        if messages:
            self._drop_received(Action(action.kind, action.microbatch, source // self.size), source % self.size)
        tensors = [tensor for _, tensor in messages]
        if action.kind == "forward":
            for tensor, (_, differentiable, _) in zip(tensors, self.shapes["forward", stage], strict=True):
                tensor.requires_grad_(differentiable)
        return tensors

    def expect(self, actions: Sequence[Action]) -> None:
        """Have room ready for what these need, so that it arrives while something else runs."""
        for action in actions:
            stage = action.chunk * self.size + self.rank
            source = stage - 1 if action.kind == "forward" else stage + 1
            known = (action.kind, stage) in self.shapes and (action.microbatch or action.kind == "backward")
            if 0 <= source < self.stages and source % self.size != self.rank and known:
                self._post(action, stage, source % self.size)

    def _post(self, action: Action, stage: int, source: int) -> None:
        key = (action.kind, stage, action.microbatch)
        if key in self.expected:
            return
        if action.kind == "forward" and action.microbatch == 0:
            header = torch.empty(_HEADER, dtype=torch.int64, device=self.device)
            self._start(dist.irecv, header, source, self._tag(action, stage)).wait()
            self.shapes["forward", stage] = _decode(header.tolist())
        tensors = [torch.empty(sizes, dtype=dtype, device=self.device) for dtype, _, sizes in self.shapes[key[:2]]]
        self.expected[key] = [(self._start(dist.irecv, t, source, self._tag(action, stage)), t) for t in tensors]

    def send(self, action: Action, tensors: list[Tensor]) -> None:
        """Send a forward pass's outputs to the next stage, or the gradients of its inputs to the one before.

        Raises ValueError when outputs are not shaped as those of micro-batch 0 were.
        """
        stage = action.chunk * self.size + self.rank
        target = stage + 1 if action.kind == "forward" else stage - 1
        if not 0 <= target < self.stages:
            return
        consumer = Action(action.kind, action.microbatch, target // self.size)
        if action.kind == "forward":
            self._agree(stage, action, tensors)
        if target % self.size == self.rank:
            self.local[action.kind, target, action.microbatch] = [_cut(t) for t in tensors]
            return
        messages = [t.detach().contiguous() for t in tensors]
        if action.kind == "forward" and action.microbatch == 0:
            header = torch.tensor(_encode(self.shapes["sent", stage]), device=self.device)
            messages = [header, *messages]
        for message in messages:
            work = self._start(dist.isend, message, target % self.size, self._tag(consumer, target))
            self.sent.append((target % self.size, consumer, work, message))

    def _agree(self, stage: int, action: Action, tensors: list[Tensor]) -> None:
        shapes = [(t.dtype, t.requires_grad, tuple(t.shape)) for t in tensors]
        if action.microbatch == 0:
            self.shapes["sent", stage] = shapes
            self.shapes["backward", stage] = [shape for shape in shapes if shape[1]]
        elif shapes != self.shapes["sent", stage]:
            raise ValueError(
                f"pipeline: stage {stage} gave {_describe(shapes)} for micro-batch {action.microbatch} and "
                f"{_describe(self.shapes['sent', stage])} for micro-batch 0; all of a step must be alike"
            )

    def finish(self) -> None:
        """Wait until everything that was sent has been received."""
        for _, _, work, _ in self.sent:
            work.wait()
        self.sent = []

    def _drop_received(self, done: Action, peer: int) -> None:
        """A message from `peer` shows that it had done `done`, and received what it needed until then."""
        place = self.places[peer][done]
        through = [s for s in self.sent if s[0] == peer and self.places[peer][s[1]] <= place]
        for _, _, work, _ in through:
            work.wait()
        self.sent = [s for s in self.sent if not (s[0] == peer and self.places[peer][s[1]] <= place)]

    def _tag(self, consumer: Action, stage: int) -> int:
        """A number for each message of a step, so that none is taken for another."""
        return 1 + (consumer.microbatch * self.stages + stage) * 2 + (consumer.kind == "backward")

    def _start(self, operation: Any, tensor: Tensor, peer: int, tag: int) -> Any:
        where = {"group_dst" if operation is dist.isend else "group_src": peer}
        return operation(tensor, group=self.group, tag=tag, **where)


def _cut(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _encode(shapes: list[Shape]) -> list[int]:
    if (
        not shapes
        or len(shapes) * (3 + _MOST_AXES) >= _HEADER
        or any(len(sizes) > _MOST_AXES for _, _, sizes in shapes)
    ):
        raise ValueError(
            f"pipeline: a stage returned {len(shapes)} tensors; expected 1 to 8, of at most {_MOST_AXES} axes"
        )
    header = [len(shapes)]
    for dtype, differentiable, sizes in shapes:
        if dtype not in _DTYPES:
            raise ValueError(f"pipeline: a stage returned a tensor of {dtype}; expected one of {_DTYPES}")
        header += [_DTYPES.index(dtype), int(differentiable), len(sizes), *sizes]
    return header + [0] * (_HEADER - len(header))


def _decode(header: list[int]) -> list[Shape]:
    shapes, at = [], 1
    for _ in range(header[0]):
        dtype, differentiable, axes = header[at : at + 3]
        shapes.append((_DTYPES[dtype], bool(differentiable), tuple(header[at + 3 : at + 3 + axes])))
        at += 3 + axes
    return shapes


def _describe(shapes: list[Shape]) -> str:
    return ", ".join(f"{str(dtype).removeprefix('torch.')} {sizes}" for dtype, _, sizes in shapes)
