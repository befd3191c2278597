"""Rotary pairs side by side, as Meta's checkpoints and llama.cpp keep them, and half a head apart, as we do.

A rotary embedding turns channels in pairs. Which two make a pair is a convention: (2i, 2i + 1) in the paper (Su et al.
2021, eq. 15, arXiv:2104.09864), (i, i + d/2) in Hugging Face's files and here. The rows of the matrices that make
queries and keys are permuted to go from one to the other; attention scores stay what they were.
"""

from jaxtyping import Float
from torch import Tensor


def to_half_split(weight: Float[Tensor, "d_out *d_in"], heads: int) -> Float[Tensor, "d_out *d_in"]:
    """The rows of each head with its even channels first, then its odd ones: 0 2 4 1 3 5."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)


def to_interleaved(weight: Float[Tensor, "d_out *d_in"], heads: int) -> Float[Tensor, "d_out *d_in"]:
    """What undoes `to_half_split`: channel i of the first half beside channel i of the second."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)
