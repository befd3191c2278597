"""What every Triton kernel here asks: may it run on these tensors, and in what blocks.

A kernel is a program that runs once per block of the output, on one of the GPU's multiprocessors. `tl.load` brings a
block from DRAM into registers, everything between it and `tl.store` happens there: what is fused costs no traffic.

Without a GPU, Triton's interpreter runs the same programs on CPU tensors, one block after another in NumPy, where the
variable TRITON_INTERPRET=1 was set before this module was imported. It is for tests: a block takes milliseconds.
"""

import torch
import triton
from torch import Tensor
from triton import knobs

INTERPRETED: bool = knobs.runtime.interpret
"""Whether kernels are interpreted: decided when their modules are imported, for all of them."""

MOST_ELEMENTS = 8192
"""Of a row that one block holds. Longer rows go through in tiles: registers do not suffice for them."""


def refuses_device(*tensors: Tensor | None) -> str | None:
    """Why a kernel cannot take these tensors because of where they are or of their type; None if it can."""
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != ("cpu" if INTERPRETED else "cuda"):
            where = "CPU tensors, in the interpreter" if INTERPRETED else "CUDA tensors"
            return f"Triton kernels here take {where}, and one is on {tensor.device}"
        if tensor.dtype == torch.float64:
            return "Triton kernels compute in float32, and one tensor is of float64"
    return None


def row_block(length: int) -> int:
    """Elements of a row that a program holds at once: all, rounded up to a power of two, or `MOST_ELEMENTS`."""
    return min(triton.next_power_of_2(max(1, length)), MOST_ELEMENTS)


def row_warps(block: int) -> int:
    """Groups of 32 threads for a row: 16 elements per thread, which is two loads of 128 bits in bfloat16."""
    return min(16, max(1, block // 512))


def rows_of(x: Tensor) -> Tensor:
    """(rows, n), contiguous: `x` with all axes but the last in one."""
    return x.reshape(-1, x.shape[-1]).contiguous() if x.numel() else x.new_empty(0, x.shape[-1])
