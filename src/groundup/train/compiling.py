"""torch.compile, block by block: identical blocks share one compiled graph, and names stay as they are.

The final norm is compiled, too, and so is the loss between the head's matrix products: `model.compiled` tells the
objective.
"""

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from groundup.train.compiler_cache import remove_halves

logger = logging.getLogger("groundup.train")
_said: set[str] = set()


def compile_blocks(model: nn.Module, *, required: bool) -> bool:
    """Compile every child of `model.blocks`, and the norm after them, in place; whether that was done.

    Where the compiler cannot run here (no C++ compiler, no Triton), `required` makes it an error with the
    reason; otherwise the model stays as it is, and that is said once.
    """
    blocks = getattr(model, "blocks", None)
    reason = "the model has no `blocks`" if not isinstance(blocks, nn.Module) else _why_not(model)
    if reason is None:
        assert isinstance(blocks, nn.Module)
        for module in (*blocks.children(), *_final_norm(model)):
            module.compile(dynamic=False)
        model.compiled = True  # type: ignore[assignment]
        return True
    if required:
        raise ValueError(f"compile=True: {reason}; use compile=False, or compile='auto' to go on without")
    if reason not in _said:
        _said.add(reason)
        logger.warning("not compiling: %s", reason)
    return False


def _final_norm(model: nn.Module) -> list[nn.Module]:
    """The norm between the last block and the head, if the model has one."""
    norm = getattr(model, "final_norm", None)
    return [norm] if isinstance(norm, nn.Module) and any(True for _ in norm.parameters()) else []


def uncompiled(model: nn.Module) -> AbstractContextManager[Any]:
    """Within it what was compiled runs as it is written, so that hooks inside of it are called."""
    compiled = getattr(model, "compiled", False) or any(m._compiled_call_impl is not None for m in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _why_not(model: nn.Module) -> str | None:
    """Compile something tiny: no other question answers whether a compiler is there and works."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    remove_halves()
    try:
        torch.compile(_tiny, dynamic=False)(torch.ones(8, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        return f"torch.compile does not work here ({str(error).strip().splitlines()[0][:200]})"
    return None


def _tiny(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x) * x + 1
