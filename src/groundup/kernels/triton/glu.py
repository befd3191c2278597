"""The gated product of the GLU family: forward, activation and product in one pass; backward, both gradients in one.

In plain torch, forward writes the activation to memory and reads it again, and autograd keeps it. Here 3 tensors move
forward (gate, up, y) and 5 backward (gate, up, dy, dgate, dup), and nothing is kept but the two inputs: the activation
is computed again from the gate, which costs arithmetic that waits for memory anyway.

With a = activation: dup = dy a(gate) and dgate = dy up a'(gate).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from groundup.kernels.glu import ACTIVATIONS
from groundup.kernels.triton._support import refuses_device, tuned

# 8 elements per thread: one load of 128 bits of each 16-bit input; from 1 M elements on the blocks fill a GPU.
BLOCKS = {"BLOCK": 1024, "warps": 4}
CANDIDATES = {"gated": [{"BLOCK": n, "warps": w} for n, w in ((512, 2), (1024, 2), (2048, 4), (2048, 8), (4096, 8))]}


def refuses(gate: Tensor, up: Tensor, activation: str = "silu") -> str | None:
    if gate.shape != up.shape or gate.dtype != up.dtype:
        return f"the gate is {gate.dtype} {tuple(gate.shape)} and its partner {up.dtype} {tuple(up.shape)}"
    # A name that the reference does not know either is its error to explain.
    return refuses_device(gate, up) or (None if activation in ACTIVATIONS else f"activation {activation!r} is unknown")


def gated(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    return _Gated.apply(gate, up, activation)


def traffic(elements: int, element_bytes: int, *, backward: bool = False) -> int:
    """Bytes from and to DRAM."""
    return elements * element_bytes * (5 if backward else 3)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        y = torch.empty_like(gate)
        _launch(_forward, gate, up, y, activation=activation)
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        _launch(_backward, gate, up, upstream[0].contiguous(), dgate, dup, activation=ctx.activation)
        return dgate, dup, None


def _launch(kernel: Any, first: Tensor, *others: Tensor, activation: str) -> None:
    if count := first.numel():
        blocks = tuned("gated", (first.dtype,), BLOCKS)
        grid = (triton.cdiv(count, blocks["BLOCK"]),)
        kernel[grid](first, *others, count, ACTIVATION=activation, BLOCK=blocks["BLOCK"], num_warps=blocks["warps"])


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    """(a(x), a'(x)) of the activation of that name in `kernels/glu.py`; what is not used is not computed."""
    # Written so that NaN stays NaN, as a maximum with 0 would not.
    positive = tl.where(x <= 0.0, 0.0, x)
    value, slope = x, tl.full(x.shape, 1.0, tl.float32)
    if ACTIVATION == "relu":
        value, slope = positive, tl.where(x > 0.0, 1.0, 0.0)
    elif ACTIVATION == "relu2":
        value, slope = positive * positive, 2.0 * positive
    elif ACTIVATION == "sigmoid":
        value = tl.sigmoid(x)
        slope = value * (1.0 - value)
    elif ACTIVATION == "silu":
        squashed = tl.sigmoid(x)
        value, slope = x * squashed, squashed * (1.0 + x * (1.0 - squashed))
    elif ACTIVATION == "gelu":
        below = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)  # the normal distribution function, with 1 / sqrt(2)
        density = tl.exp(-0.5 * x * x) * 0.3989422804014327  # 1 / sqrt(2 pi)
        value, slope = x * below, below + x * density
    elif ACTIVATION == "gelu_tanh":
        # 0.5 (1 + tanh(u)) is sigmoid(2 u), with u = sqrt(2 / pi) (x + 0.044715 x^3).
        below = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        value = x * below
        slope = below + value * (1.0 - below) * 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    else:
        tl.static_assert(ACTIVATION == "identity", "an activation without a formula here")
    return value, slope


@triton.jit
def _forward(gate, up, y, count, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    value, _ = _activate(tl.load(gate + places, mask=inside, other=0.0).to(tl.float32), ACTIVATION)
    value *= tl.load(up + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + places, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(gate, up, dy, dgate, dup, count, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    value, slope = _activate(tl.load(gate + places, mask=inside, other=0.0).to(tl.float32), ACTIVATION)
    partner = tl.load(up + places, mask=inside, other=0.0).to(tl.float32)
    upstream = tl.load(dy + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(dgate + places, (upstream * partner * slope).to(dgate.dtype.element_ty), mask=inside)
    tl.store(dup + places, (upstream * value).to(dup.dtype.element_ty), mask=inside)
