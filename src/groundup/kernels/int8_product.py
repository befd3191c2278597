"""Products of matrices that are rounded to int8, with a scale for all that meets in one sum.

    int8_product              X W^T    a scale for each row of both
    int8_transposed_product   A^T B    a scale for each column of both, anew in each block of 256 rows

A row of X and a row of W meet in one sum, so their scales come out of it: sum(x w) = s_x s_w sum(q_x q_w). The sums of
the integers are exact. What is rounded is each number, to one of 255 steps up to the largest under its scale, and the
result. Columns as long as a batch has tokens are cut into blocks, so that one large number does not take the resolution
of all others (as Xi et al. 2024, "Jetfire", arXiv:2403.12422, do with squares of 32 x 32).

Dettmers et al. 2022, "LLM.int8()" (arXiv:2208.07339): vector-wise quantisation. Training with it: see
`quantized_linear`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from groundup.kernels._compiler import constant
from groundup.kernels._dispatch import op
from groundup.kernels.quantize import LARGEST, SMALLEST_AMAX, Quantized

INT8 = LARGEST[torch.int8]
BLOCK = 256
"""Rows that share a column's scale."""


@op
def int8_product(x: Float[Tensor, "rows inner"], matrix: Float[Tensor, "outer inner"]) -> Float[Tensor, "rows outer"]:
    """In x's type. A row of the result does not depend on other rows of x.

    A number that is not finite makes no number of its row (of x), or of its column (of the result), finite.
    """
    return _scaled_sums(_rounded(x), _rounded(matrix)).to(x.dtype)


@op
def int8_transposed_product(
    a: Float[Tensor, "rows outer"], b: Float[Tensor, "rows inner"]
) -> Float[Tensor, "outer inner"]:
    """In float32. The last block of rows may be shorter.

    A number that is not finite makes no number of its row of the result (of a), or of its column (of b), finite.
    """
    total = a.new_zeros(a.shape[1], b.shape[1], dtype=torch.float32)
    for of_a, of_b in zip(a.split(BLOCK), b.split(BLOCK), strict=True):
        total = total + _scaled_sums(_rounded(of_a.T), _rounded(of_b.T))
    return total


def _scaled_sums(a: Quantized, b: Quantized) -> Float[Tensor, "rows columns"]:
    sums = a.values.double() @ b.values.double().T  # exact, on any device
    return sums.float() * b.scales.T * a.scales


def _rounded(matrix: Float[Tensor, "rows inner"]) -> Quantized:
    """values * scales; the values are whole, in float32."""
    matrix = matrix.detach().float()
    amax = matrix.abs().amax(-1, keepdim=True) if matrix.numel() else matrix.new_ones(len(matrix), 1)
    amax = torch.where(amax < SMALLEST_AMAX, 1.0, amax)
    return Quantized((matrix * torch.div(matrix.new_tensor(INT8), amax)).round(), amax * (1 / INT8))


@torch.library.custom_op("groundup::int8_product", mutates_args=())
def traced_int8_product(x: Tensor, matrix: Tensor) -> Tensor:
    """`int8_product` as one node of a compiled graph, whose kernel is chosen when it runs."""
    return int8_product(x, matrix)


@traced_int8_product.register_fake
def _(x: Tensor, matrix: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], matrix.shape[0])


@torch.library.custom_op("groundup::int8_transposed_product", mutates_args=())
def traced_int8_transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """`int8_transposed_product` as one node of a compiled graph."""
    return int8_transposed_product(a, b)


@traced_int8_transposed_product.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[1], b.shape[1], dtype=torch.float32)


@constant
def multiplies_bytes(device: str) -> bool:
    """Whether this device's int8 products are real here: by units for them, and not simulated."""
    if device != "cpu":
        return False
    one = torch.ones(32, 32)
    return int8_product.refusal("numba", one.bfloat16(), one) is None  # type: ignore[attr-defined]
