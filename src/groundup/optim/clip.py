"""Gradient clipping by the global norm."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor


def global_norm(tensors: Iterable[Tensor]) -> Float[Tensor, ""]:
    """The Euclidean norm of all tensors seen as one long vector; 0 for none. It stays on the device."""
    tensors = list(tensors)
    if not tensors:
        return torch.zeros(())
    norms = torch._foreach_norm(tensors)  # pyright: ignore[reportPrivateImportUsage]
    return torch.linalg.vector_norm(torch.stack(norms))


@torch.no_grad()
def clip_by_global_norm(
    params: Iterable[Tensor], max_norm: float, eps: float = 1e-6, *, divisor: Tensor | float = 1.0
) -> Float[Tensor, ""]:
    """Scale all gradients by min(1, max_norm / (norm + eps)) in place; return the norm before clipping.

    One factor for all keeps the direction of the step. Pascanu et al. 2013 (arXiv:1211.5063), algorithm 1.

    divisor: gradients that are still sums are divided by it in the same pass; the norm is of the quotient.
    A norm that is not finite scales nothing, so that the gradient at fault can still be found: look at the
    result before stepping.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm={max_norm}: expected a number above 0 (float('inf') does not clip)")
    grads = [p.grad for p in params if p.grad is not None]
    norm = global_norm(grads) / divisor
    factor = torch.where(norm.isfinite(), (max_norm / (norm + eps)).clamp(max=1.0), 1.0) / divisor
    # On the CPU the comparison is free and spares a pass over memory; elsewhere it would wait for the device.
    if grads and (norm.device.type != "cpu" or bool(factor != 1.0)):
        torch._foreach_mul_(grads, factor)  # pyright: ignore[reportPrivateImportUsage]
    return norm
