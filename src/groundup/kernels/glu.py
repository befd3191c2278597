"""Activations, and the gated product of the GLU family."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from groundup.config import nearest
from groundup.kernels._dispatch import op


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2. So et al. 2021, "Primer" (arXiv:2109.08668)."""
    return F.relu(x).square()


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU's tanh approximation, the one GPT-2 was trained with; up to 5e-4 away from the exact form."""
    return F.gelu(x, approximate="tanh")


def identity(x: Tensor) -> Tensor:
    """f(x) = x: with a gate, the bilinear layer."""
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "relu2": relu_squared,
    "identity": identity,
}


def activate(x: Float[Tensor, "*rows d_ff"], activation: str) -> Float[Tensor, "*rows d_ff"]:
    """The named activation; ValueError with the nearest known name otherwise."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is unknown{nearest(activation, ACTIVATIONS)}")
    return ACTIVATIONS[activation](x)


@op
def gated(
    gate: Float[Tensor, "*rows d_ff"], up: Float[Tensor, "*rows d_ff"], activation: str = "silu"
) -> Float[Tensor, "*rows d_ff"]:
    r"""activation(gate) * up: sigmoid is GLU, relu ReGLU, gelu GEGLU, silu SwiGLU, identity bilinear.

    Shazeer 2020, eq. 5 and 6 (arXiv:2002.05202).
    """
    return activate(gate, activation) * up
