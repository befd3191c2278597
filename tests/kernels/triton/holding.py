"""Holding a kernel against its reference: outputs and gradients, in the kernel's type and in float64."""

import torch

from groundup.kernels import backend
from groundup.kernels.examples import upstream

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Relative to the largest entry: rounding of the output, and of nothing before it."""


def results(function, args, dtype=None):
    """Outputs, then gradients of what wants one; with `dtype`, computed in it."""
    made = []
    for a in args:
        if isinstance(a, torch.Tensor) and a.is_floating_point():
            wanted, a = a.requires_grad, a.detach().to(dtype or a.dtype)
            a = a.requires_grad_() if wanted else a
        made.append(a)
    said = function(*made)
    outputs = [said] if isinstance(said, torch.Tensor) else list(said)
    leaves = [a for a in made if isinstance(a, torch.Tensor) and a.requires_grad]
    gradients = torch.autograd.grad(outputs, leaves, [upstream(o) for o in outputs])
    return [t.detach() for t in (*outputs, *gradients)]


def hold(op, *args, tolerance=None):
    """By the Triton kernel as by the reference in float64, up to rounding."""
    with backend("triton"):
        got = results(op, args)
    for a, b in zip(got, results(op.reference, args, torch.float64), strict=True):
        assert a.shape == b.shape
        scale = float(b.abs().max()) if b.numel() else 0.0
        allowed = tolerance or TOLERANCE[a.dtype]
        torch.testing.assert_close(a.double(), b, rtol=allowed, atol=allowed * max(scale, 1e-3))
