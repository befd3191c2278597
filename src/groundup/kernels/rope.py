"""Rotary position embedding: relative positions by rotating channel pairs."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from groundup.kernels._dispatch import op


def rope_frequencies(
    d_head: int, theta: float = 10_000.0, device: torch.device | None = None
) -> Float[Tensor, " pairs"]:
    r"""Radians per position of channel pair i: theta^(-2i / d_head), in float32."""
    exponents = torch.arange(0, d_head, 2, dtype=torch.float32, device=device) / d_head
    return theta**-exponents


def rope_tables(
    positions: Int[Tensor, "batch seq"], frequencies: Float[Tensor, " pairs"]
) -> tuple[Float[Tensor, "batch seq 1 pairs"], Float[Tensor, "batch seq 1 pairs"]]:
    """(cos, sin) of every token's angles, in float32, with an axis to broadcast over heads.

    Every layer turns by the same angles, so a model computes the tables once per forward pass.
    """
    angles = (positions[..., None].float() * frequencies)[:, :, None]
    return angles.cos(), angles.sin()


@op
def rotate(
    x: Float[Tensor, "batch seq heads d_head"],
    cos: Float[Tensor, "#batch seq 1 pairs"],
    sin: Float[Tensor, "#batch seq 1 pairs"],
) -> Float[Tensor, "batch seq heads d_head"]:
    """Turn channel pair i = (x_i, x_{i + d_head/2}) counter-clockwise; tables as from `rope_tables`.

    The arithmetic is in float32 (the tables' type) and is rounded to x's type once.
    """
    first, second = x.chunk(2, -1)
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos], -1)
    return turned.to(x.dtype)


def apply_rope(
    x: Float[Tensor, "batch seq heads d_head"],
    positions: Int[Tensor, "batch seq"],
    theta: float = 10_000.0,
) -> Float[Tensor, "batch seq heads d_head"]:
    r"""Rotate each head by an angle proportional to its token's position.

    Channel pair i = (x_i, x_{i + d/2}) of the token at position p turns counter-clockwise by
    p * theta^(-2i/d), so that <rope(q, p), rope(k, s)> depends on p and s only through p - s.

    Angles are computed in float32 and the result is cast back: in bfloat16, positions above 256 are no
    longer exact integers.

    Su et al. 2021, eq. 34 (arXiv:2104.09864); half-split layout as in Llama's Hugging Face weights.
    Meta's original checkpoints interleave the pairs instead.
    """
    return rotate(x, *rope_tables(positions, rope_frequencies(x.shape[-1], theta, x.device)))
