"""What recurrences with a matrix of state share: cutting into chunks, and decays between their tokens.

Decays are logarithms, at most 0, and every exponent here is a sum of them over the tokens between two places. A
difference of running sums would be the same number, but it cancels where decays are strong, and its exponential
overflows on the wrong side of the diagonal. Arithmetic and states are in float32 at least.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

CHUNK = 64
"""Tokens per chunk: a power of two."""

Keys = Float[Tensor, "batch seq groups d_key"]
Values = Float[Tensor, "batch seq heads d_value"]
Gates = Float[Tensor, "batch seq heads"]
Decays = Float[Tensor, "batch seq heads #d_key"]
State = Float[Tensor, "batch heads d_key d_value"]
Resets = Bool[Tensor, "batch seq"]


def chunk_length(seq: int, chunk_size: int = CHUNK) -> int:
    """The chunk for this length: a power of two, and not much longer than the sequence."""
    assert chunk_size > 0 and chunk_size & (chunk_size - 1) == 0, "chunks are cut in halves"
    return min(chunk_size, 1 << (seq - 1).bit_length())


class Chunks:
    """The inputs as (batch, groups, heads per group, chunk, token, channel), and what decays do inside of a chunk.

    `from_start` (token, channel) is how much of the chunk's incoming state is left at a token, `to_end` how much of
    a token is left in its outgoing state. Both are 0 across a reset.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, resets: Tensor | None, size: int) -> None:
        self.size, self.groups = size, q.shape[2]
        share = v.shape[2] // self.groups
        self.q, self.k = self.split(q, 1), self.split(k, 1)
        self.v, self.g = self.split(v, share), self.split(log_decay, share)
        self.document = None if resets is None else self.split(resets[..., None, None].int(), 1).cumsum(-2)
        self.from_start, self.to_end = self.g.cumsum(-2).exp(), sums_after(self.g).exp()
        if self.document is not None:
            self.from_start = self.from_start * (self.document == 0)
            self.to_end = self.to_end * (self.document == self.document[..., -1:, :])

    def split(self, x: Tensor, share: int) -> Tensor:
        """(batch, seq, heads, d) in chunks. The tokens that fill up the last one are zeros: they change no state."""
        x = x if x.dtype == torch.int32 else at_least_float32(x)
        x = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % self.size)).unflatten(1, (-1, self.size))
        return x.unflatten(3, (-1, share)).permute(0, 3, 4, 1, 2, 5)

    def join(self, out: Tensor, v: Tensor) -> Tensor:
        """The inverse of `split`, shaped and typed as v."""
        return out.permute(0, 3, 4, 1, 2, 5).flatten(3, 4).flatten(1, 2)[:, : v.shape[1]].to(v.dtype)

    def same_document(self, scores: Tensor) -> Tensor:
        """Scores (token, token) of a chunk, with zeros between tokens that a reset separates."""
        return scores if self.document is None else scores * (self.document == self.document.mT)


def decays_between(g: Float[Tensor, "*batch size d"]) -> Float[Tensor, "*batch size size d"]:
    """exp(sum of g over the tokens after j up to i) at (i, j), zero above the diagonal."""
    square = torch.ones(g.shape[-2], g.shape[-2], dtype=torch.bool, device=g.device)
    after = g[..., :, None, :].masked_fill(~square.tril(-1)[..., None], 0.0)
    return after.cumsum(-3).exp() * square.tril()[..., None]


def sums_after(g: Float[Tensor, "*batch size d"]) -> Float[Tensor, "*batch size d"]:
    """The sum of g over the tokens after each."""
    later = F.pad(g[..., 1:, :], (0, 0, 0, 1))
    return later.flip(-2).cumsum(-2).flip(-2)


def initial_state(k: Tensor, v: Tensor, state: Tensor | None) -> Tensor:
    if state is not None:
        return at_least_float32(state)
    dtype = torch.promote_types(v.dtype, torch.float32)
    return torch.zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1], dtype=dtype, device=v.device)


def per_head(x: Tensor, heads: int) -> Tensor:
    return at_least_float32(x).repeat_interleave(heads // x.shape[2], 2)


def tokens(*streams: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Token by token. Unbound at once: the gradient of an index into the whole would be as large as the whole."""
    return zip(*(x.unbind(1) for x in streams), strict=True)


def reset(state: Tensor, resets: Tensor | None, t: int) -> Tensor:
    return state if resets is None else state.masked_fill(resets[:, t, None, None, None], 0.0)


def read(key: Float[Tensor, "batch heads d_key"], state: State) -> Float[Tensor, "batch heads d_value"]:
    return (key[:, :, None] @ state)[:, :, 0]


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
