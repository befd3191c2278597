"""Marks in the profiler's trace that say whose time it is: one around each call of a module, the optimizer, the loss.

A mark is `torch.profiler.record_function("groundup: GROUP")`. Marks nest, and the innermost counts: a linear layer
inside of attention is "attention projections", what attention does between them is "attention". The backward pass runs
no module; `profiling.attribution` finds the forward operation that each of its nodes belongs to.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.profiler import record_function

from groundup.model import Block, Transformer
from groundup.model.linear import Linear
from groundup.model.norm import LayerNorm, RMSNorm
from groundup.profiling.groups import (
    ATTENTION,
    EMBEDDING,
    FEED_FORWARD,
    HEAD,
    NORM,
    OPTIMIZER,
    OTHER,
    PROJECTIONS,
    RESIDUAL,
)

PREFIX = "groundup: "
STEP = PREFIX + "step"


def mark(group: str) -> record_function:
    """A context whose time is the group's, but for marks inside of it."""
    return record_function(PREFIX + group)


def marked(function: Callable[..., Any], group: str) -> Callable[..., Any]:
    """The function with a mark around each call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with mark(group):
            return function(*args, **kwargs)

    return call


@contextlib.contextmanager
def marks(model: Transformer, optimizer: Any = None) -> Iterator[None]:
    """Mark everything that the model and the optimizer do, for as long as the context lasts."""
    with contextlib.ExitStack() as stack:
        for module, group in module_groups(model):
            _mark_module(stack, module, group)
        # The parts of a forward pass that are methods and no modules.
        methods = {"hidden": OTHER, "embed_tokens": EMBEDDING, "layout": ATTENTION, "logits": HEAD}
        for name, group in methods.items():
            stack.enter_context(marked_method(model, name, group))
        if optimizer is not None:
            for name in ("step", "zero_grad"):
                stack.enter_context(marked_method(optimizer, name, OPTIMIZER))
        yield


def module_groups(model: Transformer) -> Iterator[tuple[nn.Module, str]]:
    """Every module that has a mark of its own."""
    for module in model.modules():
        if isinstance(module, Block):
            yield module, RESIDUAL
            yield module.mixer, ATTENTION
            yield from ((m, PROJECTIONS) for m in module.mixer.modules() if isinstance(m, Linear))
            if module.ffn is not None:
                yield module.ffn, FEED_FORWARD
        elif isinstance(module, (RMSNorm, LayerNorm)):
            yield module, NORM


def _mark_module(stack: contextlib.ExitStack, module: nn.Module, group: str) -> None:
    open_marks: list[record_function] = []

    def enter(*_: Any) -> None:
        open_marks.append(mark(group))
        open_marks[-1].__enter__()

    def leave(*_: Any) -> None:
        open_marks.pop().__exit__(None, None, None)

    stack.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
    stack.callback(module.register_forward_hook(leave, always_call=True).remove)


@contextlib.contextmanager
def marked_method(owner: Any, name: str, group: str) -> Iterator[None]:
    """Shadow the method by a marked one, on this object alone, for as long as the context lasts."""
    setattr(owner, name, marked(getattr(owner, name), group))
    try:
        yield
    finally:
        vars(owner).pop(name)
