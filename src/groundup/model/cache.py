"""What a layer remembers between calls. Layers ask; the cache decides where it lives.

Two verbs. `append(positions, *streams)` remembers this call's tokens and returns everything remembered so
far, with its positions; a stream is (batch, seq, ...), so attention appends keys and values, and a latent
attention its latent. `state(*likes)` and `keep(positions, *states)` are for layers with states of fixed size.

A cache whose `append` gives something else than tensors with a row per sequence, such as pages of a store, brings an
`attend` of its own beside it, which attention calls with them instead of `kernels.attention`.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

Positions = Int[Tensor, "batch seq"]


@runtime_checkable
class Cache(Protocol):
    """`length`: slots in use; 0 promises that nothing is remembered."""

    @property
    def length(self) -> int: ...

    def append(self, positions: Tensor, *streams: Tensor) -> tuple[Tensor, ...]: ...

    def state(self, *likes: Tensor) -> tuple[Tensor, ...]: ...

    def keep(self, positions: Tensor, *states: Tensor) -> None: ...

    def crop(self, length: int) -> None: ...

    def next_positions(self) -> Tensor: ...


class NoCache:
    """Training: nothing is remembered, so `append` is the identity."""

    length = 0

    def append(self, positions: Positions, *streams: Tensor) -> tuple[Tensor, ...]:
        return (positions, *streams)

    def state(self, *likes: Tensor) -> tuple[Tensor, ...]:
        """The initial states: zeros shaped as `likes`, each (batch, ...)."""
        return tuple(torch.zeros_like(like) for like in likes)

    def keep(self, positions: Positions, *states: Tensor) -> None:
        pass

    def crop(self, length: int) -> None:
        pass

    def next_positions(self) -> Int[Tensor, "batch 1"]:
        raise AssertionError("nothing is remembered, so there is no next position")


class _States:
    """A recurrence's states and how far each row has come; there are no slots that could be cropped."""

    def __init__(self) -> None:
        self.length = 0
        self.next_positions: Tensor | None = None
        self._states: tuple[Tensor, ...] = ()

    def get(self, likes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self._states or tuple(torch.zeros_like(like) for like in likes)

    def refuse_crop(self) -> None:
        if self.length:
            raise ValueError("a recurrent state cannot be cropped: it does not know what it was before its last tokens")

    def keep(self, positions: Positions, states: tuple[Tensor, ...]) -> None:
        _refuse_gradients(states)
        reached = positions.amax(1, keepdim=True) + 1
        self.next_positions = reached if self.next_positions is None else torch.maximum(self.next_positions, reached)
        self.length += positions.shape[1]
        self._states = states


class DenseCache:
    """One contiguous buffer per stream; its capacity doubles when full. For inference without gradients.

    Rows are ragged through positions: a padding token has position -1 and is never seen by a query. A
    stream with heads, (batch, seq, heads, d), is stored as (batch, heads, capacity, d), so that the view
    attention takes of it needs no copy.
    """

    def __init__(self, capacity: int = 0) -> None:
        self._used = 0
        self._capacity = capacity
        self._positions: Tensor | None = None
        self._streams: list[Tensor] = []
        self._states = _States()

    @property
    def length(self) -> int:
        return max(self._used, self._states.length)

    def append(self, positions: Positions, *streams: Tensor) -> tuple[Tensor, ...]:
        _refuse_gradients(streams)
        start, self._used = self._used, self._used + positions.shape[1]
        self._reserve(self._used, positions, streams)
        assert self._positions is not None
        self._positions[:, start : self._used] = positions
        remembered = [_seq_second(stream) for stream in self._streams]
        for buffer, new in zip(remembered, streams, strict=True):
            buffer[:, start : self._used] = new
        return (self._positions[:, : self._used], *(b[:, : self._used] for b in remembered))

    def _reserve(self, needed: int, positions: Tensor, streams: tuple[Tensor, ...]) -> None:
        if self._positions is not None and needed <= self._capacity:
            return
        self._capacity = max(needed, self._capacity if self._positions is None else 2 * self._capacity)
        old_positions, old = self._positions, self._streams
        self._positions = positions.new_full((positions.shape[0], self._capacity), -1)
        self._streams = [_empty(stream, self._capacity) for stream in streams]
        if old_positions is not None:
            self._positions[:, : old_positions.shape[1]] = old_positions
            for buffer, before in zip(self._streams, old, strict=True):
                _seq_second(buffer)[:, : old_positions.shape[1]] = _seq_second(before)

    def state(self, *likes: Tensor) -> tuple[Tensor, ...]:
        return self._states.get(likes)

    def keep(self, positions: Positions, *states: Tensor) -> None:
        self._states.keep(positions, states)

    def crop(self, length: int) -> None:
        """Forget every slot from `length` on, such as rejected draft tokens."""
        self._states.refuse_crop()
        self._used = min(self._used, length)

    def next_positions(self) -> Int[Tensor, "batch 1"]:
        """One past the last position of each row."""
        if self._states.next_positions is not None:
            return self._states.next_positions
        assert self._positions is not None and self._used, "the cache is empty"
        return self._positions[:, : self._used].amax(1, keepdim=True) + 1


def _refuse_gradients(streams: tuple[Tensor, ...]) -> None:
    if any(stream.requires_grad for stream in streams):
        raise ValueError("a cache is overwritten in place, so call the model under torch.no_grad() with it")


def _empty(stream: Tensor, capacity: int) -> Tensor:
    batch, _, *rest = stream.shape
    if len(rest) == 2:
        return stream.new_zeros(batch, rest[0], capacity, rest[1])
    return stream.new_zeros(batch, capacity, *rest)


def _seq_second(buffer: Tensor) -> Tensor:
    return buffer.transpose(1, 2) if buffer.dim() == 4 else buffer


class PagePool:
    """Numbers of free pages, shared by every sequence and layer that draws from it."""

    def __init__(self, num_pages: int, page_size: int = 16) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self.free = list(range(num_pages - 1, -1, -1))

    def take(self) -> int:
        if not self.free:
            raise ValueError(f"all {self.num_pages} pages of {self.page_size} tokens are in use")
        return self.free.pop()


class PagedCache:
    """Fixed pages and a page table per row: no reserved space beyond the last page.

    The reference: `append` gathers every row's pages into one dense tensor; a kernel would read them in
    place. Padding tokens (position -1) are not stored, so each row has its own length; the gathered tensor
    is as long as the longest, with position -1 in the rest. Kwon et al. 2023 (arXiv:2309.06180).
    """

    def __init__(self, pool: PagePool, batch: int) -> None:
        self.pool = pool
        self.tables: list[list[int]] = [[] for _ in range(batch)]
        self.lengths = [0] * batch
        self._positions: Tensor | None = None
        self._streams: list[Tensor] = []
        self._states = _States()

    @property
    def length(self) -> int:
        return max(self._states.length, *self.lengths, 0)

    def append(self, positions: Positions, *streams: Tensor) -> tuple[Tensor, ...]:
        _refuse_gradients(streams)
        if self._positions is None:
            slots = self.pool.num_pages * self.pool.page_size
            self._positions = positions.new_full((slots + 1,), -1)
            self._streams = [stream.new_zeros(slots + 1, *stream.shape[2:]) for stream in streams]
        for row in range(positions.shape[0]):
            self._append_row(row, positions[row], [stream[row] for stream in streams])
        slots = self._slots(positions.device)
        return (self._positions[slots], *(stream[slots] for stream in self._streams))

    def _append_row(self, row: int, positions: Tensor, streams: list[Tensor]) -> None:
        real = (positions >= 0).nonzero()[:, 0]
        start, end = self.lengths[row], self.lengths[row] + len(real)
        while len(self.tables[row]) * self.pool.page_size < end:
            self.tables[row].append(self.pool.take())
        self.lengths[row] = end
        slots = [self._slot(row, i) for i in range(start, end)]
        at = torch.tensor(slots, dtype=torch.long, device=real.device)
        assert self._positions is not None
        self._positions[at] = positions[real]
        for store, new in zip(self._streams, streams, strict=True):
            store[at] = new[real]

    def _slot(self, row: int, index: int) -> int:
        page, offset = divmod(index, self.pool.page_size)
        return self.tables[row][page] * self.pool.page_size + offset

    def _slots(self, device: torch.device) -> Int[Tensor, "batch length"]:
        """Where each row's tokens are; the slot after the last page is empty for ever, at position -1."""
        empty = self.pool.num_pages * self.pool.page_size
        longest = max(self.lengths)
        rows = [
            [self._slot(row, i) for i in range(used)] + [empty] * (longest - used)
            for row, used in enumerate(self.lengths)
        ]
        return torch.tensor(rows, dtype=torch.long, device=device).view(len(rows), longest)

    def state(self, *likes: Tensor) -> tuple[Tensor, ...]:
        return self._states.get(likes)

    def keep(self, positions: Positions, *states: Tensor) -> None:
        self._states.keep(positions, states)

    def crop(self, length: int) -> None:
        """Forget every row's tokens from `length` on and give their pages back."""
        self._states.refuse_crop()
        pages = -(-length // self.pool.page_size)
        for row, table in enumerate(self.tables):
            self.lengths[row] = min(self.lengths[row], length)
            self.pool.free.extend(table[pages:])
            del table[pages:]

    def next_positions(self) -> Int[Tensor, "batch 1"]:
        """One past the last position of each row."""
        if self._states.next_positions is not None:
            return self._states.next_positions
        assert self._positions is not None and self.length, "the cache is empty"
        return self._positions[self._slots(self._positions.device)].amax(1, keepdim=True) + 1


class CountingCache(NoCache):
    """Remembers nothing but how much it was asked to: run a model on the meta device, read the bytes.

    `bytes_per_token` is per token of one sequence; `fixed_bytes` per sequence, whatever its length.
    """

    def __init__(self) -> None:
        self.bytes_per_token = 0
        self.fixed_bytes = 0

    def append(self, positions: Positions, *streams: Tensor) -> tuple[Tensor, ...]:
        self.bytes_per_token += sum(stream[0, 0].numel() * stream.element_size() for stream in streams)
        return (positions, *streams)

    def keep(self, positions: Positions, *states: Tensor) -> None:
        self.fixed_bytes += sum(state[0].numel() * state.element_size() for state in states)
