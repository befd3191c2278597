"""Normalisation layers over `kernels.norm`."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from groundup import kernels
from groundup.config import nearest

NormKind = Literal["rms", "layer"]


class RMSNorm(nn.Module):
    """See `kernels.rmsnorm`. One gain per channel, no mean subtraction, no bias.

    With a residual, (x + residual, its norm): on a GPU one kernel.
    """

    def __init__(self, d: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d))

    def reset_weights(self, generator: torch.Generator | None = None, scale: float = 1.0) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Float[Tensor, "*batch d"], residual: Float[Tensor, "*batch d"] | None = None) -> Any:
        if residual is not None:
            return kernels.add_rmsnorm(x, residual, self.weight, self.eps)
        return kernels.rmsnorm(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class LayerNorm(nn.Module):
    """See `kernels.layernorm`; with a residual as `RMSNorm`."""

    def __init__(self, d: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d))
        self.bias = nn.Parameter(torch.zeros(d)) if bias else None

    def reset_weights(self, generator: torch.Generator | None = None, scale: float = 1.0) -> None:
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "*batch d"], residual: Float[Tensor, "*batch d"] | None = None) -> Any:
        if residual is not None:
            return kernels.add_layernorm(x, residual, self.weight, self.bias, self.eps)
        return kernels.layernorm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}, bias={self.bias is not None}"


def build_norm(kind: str, d: int, eps: float, bias: bool = False) -> nn.Module:
    """The norm of this kind; `bias` is the layer norm's, and an RMSNorm has none."""
    match kind:
        case "rms":
            return RMSNorm(d, eps)
        case "layer":
            return LayerNorm(d, eps, bias)
    raise ValueError(f"norm {kind!r} is unknown{nearest(kind, ('rms', 'layer'))}")
