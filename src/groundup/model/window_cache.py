"""The cache of a layer with a sliding window: what no later query can see is dropped."""

import torch
from torch import Tensor

from groundup.model.cache import DenseCache, Positions


class WindowCache(DenseCache):
    """A dense cache of bounded size: the last window - 1 tokens of each row, and the first `sink_tokens`.

    Room is twice that, and is tidied up when full, so that a token costs one copy of the window per window. The keys
    that a query sees are those of a `DenseCache`, so results are, too. A prompt longer than the room is held
    whole until the next call, as its own tokens look back from all over it.
    """

    def __init__(self, window: int, sink_tokens: int = 0, capacity: int = 0) -> None:
        self._newest = max(window - 1, 1)  # one at least, to know the next position from
        self._most = self._newest + sink_tokens
        super().__init__(min(capacity, 2 * self._most + 1))
        self.window, self.sink_tokens = window, sink_tokens
        self._dropped = False

    def append(self, positions: Positions, *streams: Tensor) -> tuple[Tensor, ...]:
        if self._used > self._most and self._used + positions.shape[1] > self._capacity:
            self._tidy()
        return super().append(positions, *streams)

    def _tidy(self) -> None:
        """Move what later queries may see to the front of each row."""
        assert self._positions is not None
        held = self._positions[:, : self._used]
        newest = held.amax(1, keepdim=True)
        is_seen = (held >= 0) & ((held > newest - self._newest) | (held < self.sink_tokens))
        front = is_seen.int().argsort(stable=True, dim=1, descending=True)[:, : self._most]
        self._positions[:, : self._most] = held.masked_fill(~is_seen, -1).gather(1, front)
        for buffer in self._streams:
            seq = 2 if buffer.dim() == 4 else 1  # as in DenseCache: heads come before tokens
            shape = [front.shape[0]] + [1] * (buffer.dim() - 1)
            shape[seq] = self._most
            moved = buffer.gather(seq, front.view(shape).expand(*_with(buffer.shape, seq, self._most)))
            buffer.narrow(seq, 0, self._most).copy_(moved)
        self._used, self._dropped = self._most, True

    def crop(self, length: int) -> None:
        """As `DenseCache.crop`, as long as nothing has been dropped: what is forgotten may uncover what was."""
        if self._dropped:
            raise ValueError(f"a cache with a window of {self.window} has dropped tokens, so it cannot be cropped")
        super().crop(length)


def _with(shape: torch.Size, dim: int, size: int) -> list[int]:
    return [size if i == dim else n for i, n in enumerate(shape)]
