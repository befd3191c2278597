"""Rotary pairs side by side, as in the files of Meta, llama.cpp and DeepSeek, and half a head apart, as here."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Interleaved:
    """Rows whose rotary pairs lie side by side: the last `turned` of each head's `channels`. Half-split here.

    A rotary embedding turns channels in pairs; which two make one is a convention: (2i, 2i + 1) in Su et al. 2021,
    eq. 15 (arXiv:2104.09864), (i, i + d/2) in most of Hugging Face's files. Scores are the same if queries and keys
    agree.
    """

    channels: int
    turned: int

    def to_half_split(self, rows: Float[Tensor, "d_out *d_in"]) -> Float[Tensor, "d_out *d_in"]:
        """Even channels first, then odd ones: 0 1 2 3 4 5 becomes 0 2 4 1 3 5."""
        return self._permuted(rows, (self.turned // 2, 2))

    def to_pairs(self, rows: Float[Tensor, "d_out *d_in"]) -> Float[Tensor, "d_out *d_in"]:
        """What undoes `to_half_split`."""
        return self._permuted(rows, (2, self.turned // 2))

    def _permuted(self, rows: Tensor, grid: tuple[int, int]) -> Tensor:
        still, turned = rows.unflatten(0, (-1, self.channels)).split([self.channels - self.turned, self.turned], 1)
        turned = turned.unflatten(1, grid).transpose(1, 2).flatten(1, 2)
        return torch.cat([still, turned], 1).flatten(0, 1)
