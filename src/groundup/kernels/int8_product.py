"""X W^T of two matrices that are rounded to int8 with a scale for each row, one contraction long.

A row of X and a row of W meet in one sum, so their scales come out of it: sum(x w) = s_x s_w sum(q_x q_w). The sums of
the integers are exact. What is rounded is each number, to one of 255 steps up to the largest of its row, and the result
to X's type.

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


@op
def int8_product(x: Float[Tensor, "rows inner"], matrix: Float[Tensor, "outer inner"]) -> Float[Tensor, "rows outer"]:
    """In x's type. A row of the result does not depend on other rows of x.

    A number that is not finite makes no number of its row (of x), or of its column (of the result), finite.
    """
    (of_x, x_scales), (of_matrix, scales) = _rounded(x), _rounded(matrix)
    sums = of_x.double() @ of_matrix.double().T  # exact, on any device
    return (sums.float() * scales.T * x_scales).to(x.dtype)


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


@constant
def multiplies_bytes(device: str) -> bool:
    """Whether this device's int8 products are real here: by units for them, and not simulated."""
    if device != "cpu":
        return False
    one = torch.ones(32, 32)
    return int8_product.refusal("numba", one.bfloat16(), one) is None  # type: ignore[attr-defined]
