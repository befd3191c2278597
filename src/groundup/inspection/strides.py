"""What a tensor is: a pointer into a storage, and for each axis a size and a stride.

Element (i, j) is at offset + i * stride_0 + j * stride_1. So a transpose only swaps strides, and no number moves. An
operation whose result cannot be written as an offset and strides over the same storage has to copy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from groundup.config import nearest

MAX_ELEMENTS = 1 << 20
MAX_AXES = 8


@dataclass(frozen=True)
class Memory:
    """Where a tensor's elements are. Strides and the offset count elements, `storage_bytes` is all of the storage."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    is_contiguous: bool
    storage: int
    storage_bytes: int

    def address(self, index: Sequence[int]) -> int:
        """The place in the storage, in elements."""
        return self.offset + sum(i * stride for i, stride in zip(index, self.strides, strict=True))


@dataclass(frozen=True)
class Step:
    """A tensor after one operation; `copied` where it has a storage of its own, `error` where torch refused."""

    operation: str
    memory: Memory | None
    copied: bool = False
    error: str = ""


def layout_of(tensor: Tensor) -> Memory:
    """Shape, strides and storage of a tensor.

    >>> x = torch.arange(4).reshape(2, 2)
    >>> layout_of(x).strides, layout_of(x.mT).strides
    ((2, 1), (1, 2))
    """
    storage = tensor.untyped_storage()
    return Memory(
        tuple(tensor.shape),
        tuple(tensor.stride()),
        int(tensor.storage_offset()),
        tensor.is_contiguous(),
        storage.data_ptr(),
        storage.nbytes(),
    )


def trace(shape: Sequence[int], operations: Sequence[str], dtype: torch.dtype = torch.float32) -> list[Step]:
    """What each operation does to the memory of a tensor of this shape that holds 0, 1, 2, ...

    Operations are NAME=NUMBERS, as in transpose=0,1 view=2,8 select=0,1 (axis, index) narrow=0,1,2 (axis, start,
    length) expand=4,4 or only a NAME: contiguous, clone. A refused one ends the list and says why. ValueError for
    words that are no operation, and shapes that are too large to be looked at.
    """
    tensor = _numbered(shape, dtype)
    steps = [Step("start", layout_of(tensor))]
    alive = [tensor]  # so that no storage is given to another tensor
    for word in operations:
        name, numbers = _parse(word)
        try:
            _check_size(word, OPERATIONS[name], tensor, numbers)
            tensor = OPERATIONS[name](tensor, numbers)
        except (RuntimeError, IndexError, TypeError) as error:
            steps.append(Step(word, None, error=_explained(name, tensor, str(error))))
            break
        memory, before = layout_of(tensor), layout_of(alive[-1])
        alive.append(tensor)
        steps.append(Step(word, memory, copied=memory.storage != before.storage))
    return steps


Operation = Callable[[Tensor, list[int]], Tensor]
OPERATIONS: dict[str, Operation] = {
    "transpose": lambda x, n: x.transpose(*n),
    "permute": lambda x, n: x.permute(*n),
    "view": lambda x, n: x.view(*n),
    "reshape": lambda x, n: x.reshape(*n),
    "flatten": lambda x, n: x.flatten(*n),
    "unsqueeze": lambda x, n: x.unsqueeze(*n),
    "squeeze": lambda x, n: x.squeeze(*n),
    "select": lambda x, n: x.select(*n),
    "narrow": lambda x, n: x.narrow(*n),
    "expand": lambda x, n: x.expand(*n),
    "repeat": lambda x, n: x.repeat(*n),
    "flip": lambda x, n: x.flip(n),
    "contiguous": lambda x, _: x.contiguous(),
    "clone": lambda x, _: x.clone(),
}


def _check_size(word: str, operation: Operation, tensor: Tensor, numbers: list[int]) -> None:
    """ValueError where more memory would be needed than is looked at; a result that shares its storage needs none."""
    planned = operation(torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"), numbers)
    if planned.numel() > MAX_ELEMENTS and word.partition("=")[0] != "expand":
        raise ValueError(
            f"operation {word!r}: a result of {planned.numel():,} elements; at most {MAX_ELEMENTS:,} are looked at"
        )


def _parse(word: str) -> tuple[str, list[int]]:
    name, _, written = word.partition("=")
    if name not in OPERATIONS:
        raise ValueError(f"operation {word!r} is unknown{nearest(name, OPERATIONS)}")
    if written and name in ("contiguous", "clone"):
        raise ValueError(f"operation {word!r}: {name} takes no numbers")
    try:
        return name, [int(number) for number in written.split(",")] if written else []
    except ValueError:
        raise ValueError(f"operation {word!r}: {written!r} are no whole numbers; write it as {name}=0,1") from None


def _numbered(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    count = 1
    for size in shape:
        if size < 0:
            raise ValueError(f"shape {tuple(shape)}: a size of {size}; expected 0 or more")
        count *= size
    if count > MAX_ELEMENTS or len(shape) > MAX_AXES:
        raise ValueError(f"shape {tuple(shape)}: at most {MAX_ELEMENTS:,} elements on {MAX_AXES} axes are looked at")
    return torch.arange(count).to(dtype).reshape(tuple(shape))


def _explained(name: str, tensor: Tensor, error: str) -> str:
    """torch's reason, and for a view the one that matters: which axes no single stride can join."""
    reason = error.split("\n")[0].removesuffix(" Use .reshape(...) instead.")
    if name != "view" or tensor.is_contiguous():
        return reason
    seams = [
        f"{axis} and {axis + 1} (stride {tensor.stride(axis)}, not {tensor.size(axis + 1)} x {tensor.stride(axis + 1)})"
        for axis in range(tensor.dim() - 1)
        if tensor.size(axis) > 1 and tensor.stride(axis) != tensor.size(axis + 1) * tensor.stride(axis + 1)
    ]
    if not seams:
        return reason
    return f"no stride walks through axes {', '.join(seams)}; reshape would copy, contiguous before it copies too"
