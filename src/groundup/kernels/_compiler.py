"""Marks for torch.compile that do not import it: that takes longer than importing torch, and most programs compile
nothing.

    torch.compiler.assume_constant_result, torch.compiler.disable      import torch._dynamo where they decorate
    constant, untraced                                                 the same marks, and no import until a call
"""

from collections.abc import Callable
from typing import TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., object])


def constant(function: Function) -> Function:
    """As `torch.compiler.assume_constant_result`: called while a graph is traced, its result is part of the graph."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def untraced(function: Function) -> Function:
    """As `torch.compiler.disable`: a graph ends before the call and another one begins after it.

    The compiler is imported by the first call.
    """
    return torch._disable_dynamo(function)  # type: ignore[return-value]
