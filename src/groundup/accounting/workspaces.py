"""Bytes that operations allocate within themselves and free before they return: nobody outside sees them, so they are
modelled by what causes them.

On a CPU, arithmetic between types first copies what is not of the common type, a sum in another type copies what it
adds up, and a log-sum-exp makes maxima and exponentials. A kernel on a GPU does all that number by number. Small, and
not modelled: buffers of the threads of a fused attention or a bfloat16 product, and the states of random generators
(5 KB each) that activation checkpointing keeps.
"""

import functools
from typing import Any

import torch
from torch import Tensor

_PROMOTING = {"add", "sub", "rsub", "mul", "div", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge", "where"}
_ADDING_UP = {"sum", "mean", "cumsum"}


def workspace_bytes(func: Any, args: Any, results: list[Tensor]) -> int:
    """Of one call of an operation of ATen with these arguments and results."""
    if not results or results[0].device.type != "cpu":
        return 0
    name = func.overloadpacket.__name__.removesuffix("_")
    if name in _PROMOTING:
        return _copies(args[1:] if name == "where" else args, results[0])
    if name in _ADDING_UP and args[0].is_floating_point():
        return _added_up(name, args[0], results[0])
    return args[0].nbytes + results[0].nbytes if name == "logsumexp" else 0


def _added_up(name: str, terms: Tensor, result: Tensor) -> int:
    """The terms in the type that they are added up in, and the result before it is rounded. A mean's is float32 at
    least; plain sums of bfloat16 convert number by number."""
    wide = torch.promote_types(result.dtype, torch.float32) if name == "mean" else result.dtype
    copied = terms.numel() * wide.itemsize if wide != terms.dtype else 0
    return copied + (result.numel() * wide.itemsize if wide != result.dtype else 0)


def _copies(args: Any, result: Tensor) -> int:
    """Of operands, and of the result if it has to go into a tensor of another type."""
    operands = [arg for arg in args if isinstance(arg, Tensor)]
    if not operands:
        return 0
    common = functools.reduce(torch.promote_types, (_counted_type(t, operands) for t in operands))
    copies = sum(t.numel() * common.itemsize for t in operands if t.dtype != common and t.ndim)
    in_place = result is args[0] and result.dtype != common
    return copies + (result.numel() * common.itemsize if in_place else 0)


def _counted_type(operand: Tensor, operands: list[Tensor]) -> torch.dtype:
    """Beside a tensor with axes, one without any does not decide over the type where both are floating."""
    shaped = [t for t in operands if t.ndim]
    if operand.ndim or not shaped or not shaped[0].is_floating_point():
        return operand.dtype
    return shaped[0].dtype
