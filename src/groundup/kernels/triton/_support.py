"""What every Triton kernel here asks: may it run on these tensors, and in what blocks.

A kernel is a program that runs once per block of the output, on one of the GPU's multiprocessors. `tl.load` brings a
block from DRAM into registers, everything between it and `tl.store` happens there: what is fused costs no traffic.

Without a GPU, Triton's interpreter runs the same programs on CPU tensors, one block after another in NumPy, where the
variable TRITON_INTERPRET=1 was set before this module was imported. It is for tests: a block takes milliseconds.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor
from triton import knobs

from groundup.kernels._compiler import constant
from groundup.kernels._table import table_of

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


@constant
def multiprocessors(device: torch.device) -> int:
    """How many blocks can run at the same time, at the least. Interpreted ones run one after another."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


Blocks = TypeVar("Blocks", bound=tuple[int, ...])

_trying: dict[str, dict[str, int]] = {}

asked: dict[str, tuple[Any, ...]] = {}
"""The shape that each launcher last asked blocks for."""


@contextlib.contextmanager
def trying(launcher: str, blocks: dict[str, int]) -> Iterator[None]:
    """Inside, `tuned(launcher, ...)` gives these blocks: for whoever measures which are fastest."""
    _trying[launcher] = blocks
    try:
        yield
    finally:
        del _trying[launcher]


@constant
def tuned(launcher: str, shape: tuple[Any, ...], default: dict[str, int]) -> dict[str, int]:
    """The blocks that a launcher is to use for a shape: those that were measured fastest on this GPU, else `default`.

    shape: the type, and the lengths that decide.
    """
    asked[launcher] = shape
    if launcher in _trying:
        return default | _trying[launcher]
    if INTERPRETED or not torch.cuda.is_available():
        return default
    known = table_of(torch.device("cuda", torch.cuda.current_device())).blocks
    return default | known.get(blocks_key(launcher, shape), {})


def tuned_tuple(launcher: str, shape: tuple[Any, ...], default: Blocks) -> Blocks:
    """`tuned` for a launcher whose blocks are a named tuple. Without `**`, which torch.compile cannot trace here."""
    names: tuple[str, ...] = default._fields  # type: ignore[attr-defined]
    chosen = tuned(launcher, shape, dict(zip(names, default, strict=True)))
    return type(default)(*[chosen[name] for name in names])


def blocks_key(launcher: str, shape: tuple[Any, ...]) -> str:
    """
    >>> blocks_key("gated", (torch.bfloat16, 4096))
    'gated bfloat16 4096'
    """
    return " ".join([launcher, *(str(part).removeprefix("torch.") for part in shape)])
