"""Linear maps and the token table: float32 master weights, computed in the activations' type or in eight bits."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from groundup import kernels
from groundup.kernels.quantized_linear import Products


def truncated_normal_(weight: Tensor, std: float, generator: torch.Generator | None = None) -> None:
    """Fill in place from N(0, std^2) cut off at plus or minus three standard deviations.

    Drawn on the CPU whatever device the weight is on, so that a seed means the same model everywhere.
    """
    if weight.is_meta:
        return
    drawn = torch.empty(weight.shape, dtype=torch.float32, device="cpu")
    nn.init.trunc_normal_(drawn, 0.0, std, -3 * std, 3 * std, generator=generator)
    with torch.no_grad():
        weight.copy_(drawn)


class Linear(nn.Module):
    """y = x W^T + b, with W of shape (d_out, d_in) kept in float32 and cast to x's type.

    Initialised with standard deviation 1 / sqrt(d_in), which gives outputs of unit variance for inputs of
    unit variance at any width.

    `products` "fp8", "mxfp8" or "int8" makes the matrix products of training read operands of eight bits (see
    `kernels.quantized_linear`). In eval mode they are in x's type: scales of a whole batch would let rows, and tokens,
    see each other.
    """

    products: Products | None = None

    def __init__(self, d_in: int, d_out: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None
        self.reset_weights()

    def reset_weights(self, generator: torch.Generator | None = None, scale: float = 1.0) -> None:
        if scale == 0.0:
            nn.init.zeros_(self.weight)
        else:
            truncated_normal_(self.weight, scale * self.weight.shape[1] ** -0.5, generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.products is not None and self.training:
            y = kernels.quantized_linear(x, self.weight, self.products)
            return y if bias is None else y + bias
        if x.dtype == torch.float16 and x.device.type == "cpu":
            y = _HalfOnCPU.apply(x.flatten(0, -2), self.weight.to(x.dtype)).unflatten(0, x.shape[:-1])
            return y if bias is None else y + bias
        return F.linear(x, self.weight.to(x.dtype), bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]} -> {self.weight.shape[0]}, bias={self.bias is not None}"


class _HalfOnCPU(torch.autograd.Function):
    """x W^T in fp16 through fp32: the same sums, rounded as often. Without units for fp16, torch's own products of it
    take about ten times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return (x.float() @ weight.float().T).half()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight = ctx.needs_input_grad
        d_x = (grad.float() @ weight.float()).half() if need_x else None
        return d_x, (grad.float().T @ x.float()).half() if need_weight else None


class Embedding(nn.Module):
    """A row of the (vocab, d_model) table per token."""

    def __init__(self, vocab_size: int, d_model: int, std: float = 1.0) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))
        self.reset_weights()

    def reset_weights(self, generator: torch.Generator | None = None, scale: float = 1.0) -> None:
        truncated_normal_(self.weight, scale * self.std, generator)

    def forward(self, tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_model"]:
        return F.embedding(tokens, self.weight)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]} x {self.weight.shape[1]}"
