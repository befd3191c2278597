"""RMSNorm in CUDA C++: `with backend("cuda")` builds `rmsnorm.cu` on first use. Never a default; Triton's is.

The gradient of the gain, a sum over rows, is left to torch.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundup.kernels.cuda._build import find_nvcc, library

PACK_BYTES = 16
"""A load of 128 bits, which rows must be a multiple of and begin at."""

PAIRS = {
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float32),
    (torch.float16, torch.float16),
}
"""Types of x and the gain that were compiled."""


def refuses_rmsnorm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> str | None:
    if torch.compiler.is_compiling():
        return "torch.compile cannot trace a call into a library"
    if (x.dtype, weight.dtype) not in PAIRS:
        return (
            f"it is built for float32, bfloat16 and float16 with a gain of that type or float32; x is {x.dtype}, "
            + (f"the gain {weight.dtype}")
        )
    if x.shape[-1] * x.element_size() % PACK_BYTES:
        return f"it loads {PACK_BYTES} bytes at once, and a row of {x.shape[-1]} {x.dtype} is no multiple of that"
    if not (x.is_cuda and weight.is_cuda):
        return f"it takes CUDA tensors, and x is on {x.device}, the gain on {weight.device}"
    return None if find_nvcc() else "nvcc, the CUDA compiler, was found neither on the PATH nor in /usr/local/cuda"


def rmsnorm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return _RMSNorm.apply(x, weight, eps)


def traffic(rows: int, d: int, element_bytes: int, *, backward: bool = False) -> int:
    """Bytes from and to DRAM: x and y; x, dy and dx; and a float32 per row. Without the gain and its gradient."""
    return rows * ((3 if backward else 2) * d * element_bytes + 4)


class _RMSNorm(torch.autograd.Function):
    """Keeps x and what each row was divided by, inverted, in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows, gain = _aligned(x.reshape(-1, x.shape[-1])), _aligned(weight)
        y, inverse = torch.empty_like(rows), rows.new_empty(len(rows), dtype=torch.float32)
        _launch("forward", (rows, gain, y, inverse), len(rows), rows.shape[1], ctypes.c_float(eps))
        ctx.save_for_backward(rows, gain, inverse)
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor | None, None]:
        rows, gain, inverse = ctx.saved_tensors
        dy = _aligned(upstream[0].reshape(rows.shape))
        dx = torch.empty_like(rows)
        _launch("backward", (rows, gain, dy, inverse, dx), len(rows), rows.shape[1])
        dweight = None
        if ctx.needs_input_grad[1]:
            dweight = (dy.float() * rows.float() * inverse[:, None]).sum(0).to(gain.dtype)
        return dx.view(upstream[0].shape), dweight, None


def _aligned(x: Tensor) -> Tensor:
    """Contiguous, and at an address that loads of 128 bits accept: a view may begin in the middle of one."""
    x = x.contiguous()
    return x if x.data_ptr() % PACK_BYTES == 0 else x.clone()


def _launch(which: str, tensors: tuple[Tensor, ...], rows: int, d: int, *numbers: Any) -> None:
    if not rows:
        return
    x, gain = tensors[:2]
    major, minor = torch.cuda.get_device_capability(x.device)
    types = "_".join(str(dtype).removeprefix("torch.") for dtype in (x.dtype, gain.dtype))
    call = getattr(library("rmsnorm", 10 * major + minor), f"{which}_{types}")
    with torch.cuda.device(x.device):
        addresses = (ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        error = call(*addresses, ctypes.c_int64(rows), ctypes.c_int(d), *numbers, stream)
    if error:
        raise OSError(f"rmsnorm.cu: CUDA error {error} when launching {which} on {rows} rows of {d} {x.dtype}")
