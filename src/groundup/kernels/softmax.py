"""Softmax, in its stable form."""

from jaxtyping import Float
from torch import Tensor

from groundup.kernels._dispatch import op


@op
def softmax(x: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
    r"""softmax(x)_i = exp(x_i - max x) / sum_j exp(x_j - max x).

    Subtracting the maximum changes nothing mathematically and keeps every exponent <= 0, so nothing
    overflows. Computed in float32 (float64 for float64) and cast back.
    """
    work = x if x.element_size() >= 4 else x.float()
    weights = (work - work.amax(-1, keepdim=True)).exp()
    return (weights / weights.sum(-1, keepdim=True)).to(x.dtype)


@op
def log_softmax(x: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
    r"""log softmax(x)_i = x_i - max x - log sum_j exp(x_j - max x), never the log of a rounded zero."""
    work = x if x.element_size() >= 4 else x.float()
    shifted = work - work.amax(-1, keepdim=True)
    return (shifted - shifted.exp().sum(-1, keepdim=True).log()).to(x.dtype)
