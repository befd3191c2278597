"""A round of the Newton-Schulz iteration by which Muon orthogonalises; see `optim/muon.py:orthogonalize`."""

import torch
from jaxtyping import Float
from torch import Tensor

from groundup.kernels._dispatch import op


@op
def newton_schulz(
    x: Float[Tensor, "batch rows cols"], coefficients: tuple[float, float, float]
) -> Float[Tensor, "batch rows cols"]:
    """a X + (b A + c A^2) X with A = X X^T. A singular value s becomes a s + b s^3 + c s^5."""
    a, b, c = coefficients
    gram = x @ x.mT
    polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    return torch.baddbmm(x, polynomial, x, beta=a)
