"""What several kernels compute the same way. Exponentials are of base 2, which is what the hardware has."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from groundup.kernels._compiler import constant

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
"""exp(x) = 2 ** (x * log2(e)): the product goes into a factor that scores are multiplied with anyway."""

LOG_2: tl.constexpr = tl.constexpr(0.6931471805599453)


def power_of_two(n: int) -> int:
    """The least that is at least n. Triton's own function is one that torch.compile cannot trace."""
    return 1 << max(0, n - 1).bit_length()


def channel_block(channels: int) -> int:
    """What a head's channels are filled up to with zeros: a power of two, of which tensor cores take at least 16."""
    return max(16, power_of_two(channels))


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@constant
def product_precision(dtype: torch.dtype) -> str:
    """How tensor cores take float32: whole ("ieee", on other units), or cut to 19 bits where torch was allowed to."""
    return "ieee" if dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest" else "tf32"


def differentiable_once(ctx: Any, *upstream: Tensor | None) -> None:
    """To be called first in a backward pass that is a kernel: its own gradient would be silently zero."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{type(ctx).__name__}: this kernel can be differentiated once, and create_graph=True asks for more; "
            'compute it inside of groundup.kernels.backend("reference")'
        )


@triton.jit
def tanh(x):
    """Off by 6e-8 at most, in absolute terms; an exponential that overflows gives 1, as it should."""
    return 1.0 - 2.0 / (1.0 + tl.exp2(x * (2.0 * LOG2_E)))
