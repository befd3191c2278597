"""Several parameters as one flat buffer cut into equal parts, of which each rank keeps one.

    parameters   | w1 (4, 3)       | b1 (5,)  |  w2 (2, 4)     |  padding to a multiple of the ranks
    flat buffer  [ . . . . . . . . . . . . . . 0 . . . . . . . . 0 0 ]
    shards       |  rank 0   |  rank 1   |  rank 2   |  rank 3   |

So one message gathers them all, straight into the place where they are used; all ranks hold the same number of elements
whatever the shapes are; and a parameter on this rank is the piece of it that lies in the shard, which may be all of it
or nothing. FlatParameter in Zhao et al. 2023 (arXiv:2304.11277), section 3.2.1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

ALIGNMENT = 64
"""Bytes of which every parameter starts at a multiple, as a tensor of its own does: elsewhere the CPU's matrix products
round differently."""

# torch 2.13 renamed it.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class Entry:
    """A parameter to be laid into a buffer, with every (module, attribute) that holds it."""

    name: str
    whole: nn.Parameter
    owners: tuple[tuple[nn.Module, str], ...]


@dataclass(frozen=True)
class Slot:
    """Where a parameter lies: [start, end) of the flat buffer, and `piece` of this rank's shard.

    `hooks` were registered on the parameter, and are to see the whole one's gradient, as they did.
    """

    name: str
    shape: torch.Size
    start: int
    owners: tuple[tuple[nn.Module, str], ...]
    piece: slice
    hooks: tuple[Callable[[Tensor], Tensor | None], ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.shape.numel()


@dataclass
class Meter:
    """Bytes that this rank sent since the start, and bytes of whole parameters that are in memory now and at most."""

    gathered: int = 0
    reduced: int = 0
    live: int = 0
    most_live: int = 0

    def hold(self, change: int) -> None:
        self.live += change
        self.most_live = max(self.most_live, self.live)


@dataclass(frozen=True)
class Wire:
    """How shards travel. `gather_dtype`, `reduce_dtype` None: as the parameters are. `average`: gradients' mean."""

    group: dist.ProcessGroup | None = None
    gather_dtype: torch.dtype | None = None
    reduce_dtype: torch.dtype | None = None
    average: bool = False
    device: torch.device | None = None


class FlatShard:
    """This rank's part of the parameters in `entries`, which are of one type and all trained or all frozen.

    `pieces` are the parameters that an optimizer gets, in the order of the entries: views of `shard`, each with as many
    axes as the whole (all but the last of length 1), since which parameters decay depends on that.
    """

    def __init__(self, entries: Sequence[Entry], wire: Wire, meter: Meter) -> None:
        self.wire, self.meter = wire, meter
        self.rank, self.size = dist.get_rank(wire.group), dist.get_world_size(wire.group)
        first = entries[0].whole
        self.trained = first.requires_grad
        gather_dtype = (wire.gather_dtype or first.dtype) if first.is_floating_point() else first.dtype
        step = ALIGNMENT // min(first.dtype.itemsize, gather_dtype.itemsize)
        starts = [0, *accumulate(-(-entry.whole.numel() // step) * step for entry in entries)]
        end = starts[len(entries) - 1] + entries[-1].whole.numel()
        self.length = -(-end // self.size)
        self.slots = [self._slot(entry, start) for entry, start in zip(entries, starts, strict=False)]
        self.shard = torch.zeros(self.length, dtype=first.dtype, device=wire.device or first.device)
        for slot, entry in zip(self.slots, entries, strict=True):
            self.fill(slot, entry.whole)
        self.pieces = [nn.Parameter(self._cut(self.shard, slot), self.trained) for slot in self.slots]
        self.buffer = torch.empty(self.size * self.length, dtype=gather_dtype, device=self.shard.device)
        self.bytes = self.buffer.nbytes
        self.buffer.untyped_storage().resize_(0)
        self._gathering: tuple[Any, Tensor] | None = None
        self._reducing: tuple[Any, Tensor, Tensor] | None = None

    def _slot(self, entry: Entry, start: int) -> Slot:
        end, low, high = start + entry.whole.numel(), self.rank * self.length, (self.rank + 1) * self.length
        piece = slice(min(max(start, low), high) - low, min(max(end, low), high) - low)
        hooks = tuple((entry.whole._backward_hooks or {}).values())
        return Slot(entry.name, entry.whole.shape, start, entry.owners, piece, hooks)

    @torch.no_grad()
    def fill(self, slot: Slot, whole: Tensor) -> None:
        """Take this rank's piece from a whole parameter; nothing from one on the meta device."""
        if not whole.is_meta:
            self.shard[slot.piece].copy_(self.piece_of(slot, whole).reshape(-1))

    def piece_of(self, slot: Slot, whole: Tensor) -> Tensor:
        """This rank's part of a tensor like the whole parameter, in the form of its piece."""
        skipped = self.rank * self.length + slot.piece.start - slot.start
        flat = whole.detach().reshape(-1)[skipped : skipped + slot.piece.stop - slot.piece.start]
        return flat.view(*[1] * (len(slot.shape) - 1), -1)

    @staticmethod
    def _cut(flat: Tensor, slot: Slot) -> Tensor:
        return flat[slot.piece].view(*[1] * (len(slot.shape) - 1), -1)

    # Whole parameters: a storage that is filled and emptied, so that what autograd saved of it comes back to life.

    @property
    def is_whole(self) -> bool:
        return self.buffer.untyped_storage().nbytes() > 0 or self.bytes == 0

    def launch(self) -> None:
        """Start to gather, unless that was done."""
        if self.is_whole:
            return
        self.buffer.untyped_storage().resize_(self.bytes)
        self.meter.hold(self.bytes)
        self.meter.gathered += self.bytes // self.size * (self.size - 1)
        sent = self.shard.to(self.buffer.dtype)
        self._gathering = _all_gather(self.buffer, sent, group=self.wire.group, async_op=True), sent

    def gather(self) -> None:
        """Whole parameters are in the buffer when this returns (on a GPU: for what is queued after it)."""
        self.launch()
        if self._gathering is not None:
            self._gathering[0].wait()
            self._gathering = None

    def free(self) -> None:
        if self.is_whole and self.bytes:
            self.gather()  # a buffer that is being written cannot go
            self.buffer.untyped_storage().resize_(0)
            self.meter.hold(-self.bytes)

    def wholes(self) -> list[Tensor]:
        """New tensors on the buffer; autograd knows no relation between them: filling it again is no edit of them."""
        storage = self.buffer.untyped_storage()
        empty = self.buffer.new_empty
        return [empty(0).set_(storage, slot.start, slot.shape) for slot in self.slots]  # type: ignore[call-overload]

    # Gradients: each rank sends every other its part, and adds up what it got in the order of ranks.

    def reduce(self, gradients: Sequence[Tensor | None]) -> None:
        """Start to sum whole gradients over ranks; `settle` leaves each rank's part in its pieces' `grad`."""
        self.settle()
        dtype = self.wire.reduce_dtype or self.shard.dtype
        sent = torch.zeros(self.size * self.length, dtype=dtype, device=self.shard.device)
        for slot, gradient in zip(self.slots, gradients, strict=True):
            if gradient is not None:
                sent[slot.start : slot.end].copy_(gradient.reshape(-1))
        received = torch.empty_like(sent)
        self.meter.reduced += sent.nbytes // self.size * (self.size - 1)
        work = dist.all_to_all_single(received, sent, group=self.wire.group, async_op=True)
        self._reducing = work, sent, received

    def settle(self) -> None:
        """Wait for the gradients on their way and add them to the pieces' `grad`, in the parameters' own type."""
        if self._reducing is None:
            return
        work, _, received = self._reducing
        self._reducing = None
        work.wait()
        first, *others = received.view(self.size, self.length)
        total = first.to(self.shard.dtype, copy=True)
        for part in others:
            total += part
        total = total / self.size if self.wire.average else total
        for slot, piece in zip(self.slots, self.pieces, strict=True):
            gradient = self._cut(total, slot)
            piece.grad = gradient if piece.grad is None else piece.grad.add_(gradient)

    def gathered(self, value: Callable[[nn.Parameter], Tensor]) -> Mapping[str, Tensor]:
        """What `value` makes of every piece (itself, its gradient, a state), as whole tensors: a collective."""
        values = [value(piece).detach().reshape(-1) for piece in self.pieces]
        own = values[0].new_zeros(self.length)
        for slot, part in zip(self.slots, values, strict=True):
            own[slot.piece] = part
        flat = own.new_empty(self.size * self.length)
        _all_gather(flat, own, group=self.wire.group)
        return {slot.name: flat[slot.start : slot.end].view(slot.shape).clone() for slot in self.slots}
