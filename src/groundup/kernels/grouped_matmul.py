"""One matrix product per expert over rows that lie sorted by expert."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from groundup.kernels._compiler import untraced
from groundup.kernels._dispatch import op


@op
def grouped_matmul(
    rows: Float[Tensor, "rows d_in"],
    weights: Float[Tensor, "experts d_out d_in"],
    ends: Int[Tensor, " experts"],
) -> Float[Tensor, "rows d_out"]:
    r"""rows[ends[e - 1] : ends[e]] W_e^T for every expert e, with ends[-1] = 0 before the first.

    `ends` are the cumulated counts of rows per expert; an expert without rows is fine. Rows behind the last end
    belong to nobody and give zeros, so that a number of rows that varies fits a fixed shape. No row is padded and
    none is dropped, as in MegaBlocks (Gale et al. 2022, arXiv:2211.15841), and a row's result does not depend on
    who shares its expert, up to the rounding of a product with more rows.
    """
    return _one_by_one(rows, weights, ends)


# The ends decide shapes, which no compiled graph can hold; the compiler steps around this call.
@untraced
def _one_by_one(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    bounds = [0, *_numbers(ends, rows.shape[0])]
    # unbind, not weights[e]: its gradient is one stack, where each index would make a stack of its own.
    parts = [
        rows[begin:end] @ weight.mT for weight, begin, end in zip(weights.unbind(), bounds, bounds[1:], strict=False)
    ]
    return torch.cat([*parts, rows.new_zeros(rows.shape[0] - bounds[-1], weights.shape[1])])


def _numbers(ends: Tensor, rows: int) -> list[int]:
    """Tensors without numbers, which only count work and memory, are taken to be spread evenly."""
    if ends.is_meta or isinstance(ends, FakeTensor):
        return [rows * (e + 1) // len(ends) for e in range(len(ends))]
    return ends.tolist()
