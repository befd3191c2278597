"""RMSNorm and LayerNorm over the last axis, statistics in float32."""

import torch
from jaxtyping import Float
from torch import Tensor

from groundup.kernels._dispatch import op


@op
def rmsnorm(x: Float[Tensor, "*rows d"], weight: Float[Tensor, " d"], eps: float = 1e-5) -> Float[Tensor, "*rows d"]:
    r"""y = weight * x / sqrt(mean(x^2) + eps).

    Squares are summed in float32: in bfloat16 the mean of 4096 squares loses everything below 1/256 of it.
    The product with the weight is rounded once, at the end.

    Zhang & Sennrich 2019, eq. 4 (arXiv:1910.07467).
    """
    work = _at_least_float32(x)
    inverse = work.square().mean(-1, keepdim=True).add(eps).rsqrt()
    return (work * inverse * weight).to(x.dtype)


@op
def layernorm(
    x: Float[Tensor, "*rows d"],
    weight: Float[Tensor, " d"],
    bias: Float[Tensor, " d"] | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "*rows d"]:
    r"""y = weight * (x - mean x) / sqrt(var x + eps) + bias, with the biased variance (divided by d).

    The variance is that of the centred values, not E[x^2] - E[x]^2, which cancels when |mean| >> std.

    Ba et al. 2016, eq. 4 (arXiv:1607.06450).
    """
    work = _at_least_float32(x)
    centred = work - work.mean(-1, keepdim=True)
    inverse = centred.square().mean(-1, keepdim=True).add(eps).rsqrt()
    y = centred * inverse * weight
    return (y if bias is None else y + bias).to(x.dtype)


@op
def add_rmsnorm(
    x: Float[Tensor, "*rows d"], residual: Float[Tensor, "*rows d"], weight: Float[Tensor, " d"], eps: float = 1e-5
) -> tuple[Float[Tensor, "*rows d"], Float[Tensor, "*rows d"]]:
    """(s, rmsnorm(s)) with s = x + residual: what every block does between two of its branches.

    The norm is that of the rounded sum, which later blocks see too. Apart, the sum would be written and read again.
    """
    total = x + residual
    return total, rmsnorm.reference(total, weight, eps)


@op
def add_layernorm(
    x: Float[Tensor, "*rows d"],
    residual: Float[Tensor, "*rows d"],
    weight: Float[Tensor, " d"],
    bias: Float[Tensor, " d"] | None = None,
    eps: float = 1e-5,
) -> tuple[Float[Tensor, "*rows d"], Float[Tensor, "*rows d"]]:
    """(s, layernorm(s)) with s = x + residual; see `add_rmsnorm`."""
    total = x + residual
    return total, layernorm.reference(total, weight, bias, eps)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
