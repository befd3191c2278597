"""Where the first number that is not finite arises: hooks on every module, for one forward and backward pass."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from groundup.train.compiling import uncompiled

Kind = Literal["activation", "loss", "gradient"]
LOSS = "the loss"


@dataclass
class Origin:
    """kind: an output, the loss behind all outputs, or a gradient. module: the path of what computed it. rows: of the
    micro-batch that was traced, as far as a tensor tells rows apart."""

    kind: Kind
    module: str
    text: str
    rows: list[int] = field(default_factory=list)


@dataclass
class _Call:
    """A module at work. `inputs` are held only until it is done."""

    name: str
    parent: "_Call | None"
    inputs: list[Tensor] = field(default_factory=list)
    largest_gradient: float | None = None


class Trace:
    """Within its `with` block every call of a module is looked at, compiled or not; `origin` is what was found first.

    Modules finish before those that hold them, so the first output that is not finite is the innermost module's. In
    the backward pass each module reads its inputs through a view of its own: the gradient of a residual stream is a
    sum, and only the view tells which of its readers broke it. Each look waits for the device.
    """

    def __init__(self, model: nn.Module, rows: int):
        self.model, self.rows = model, rows
        self.origin: Origin | None = None
        self.names = {module: name for name, module in model.named_modules() if name}
        self.called: set[str] = set()
        self._stack: list[_Call] = []
        self._last_at_top = ""
        self._forward = True
        self._handles: list[Any] = []

    def __enter__(self) -> "Trace":
        self._eager = uncompiled(self.model)
        self._eager.__enter__()
        for module in self.names:
            self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leave))
        for name, p in self.model.named_parameters():
            if p.requires_grad:
                self._handles.append(p.register_hook(lambda grad, name=name: self._parameter(name, grad)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._eager.__exit__(None, None, None)

    def loss(self, total: Tensor) -> None:
        """End of the forward pass: outputs are looked at no more, as recomputed blocks would run again."""
        self._forward = False
        if self.origin is None and not _finite(total):
            self.origin = Origin(
                "loss", LOSS, f"every module's output is finite, and the loss is {float(total.detach()):g}"
            )

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._forward:
            return None
        call = _Call(self.names[module], self._stack[-1] if self._stack else None)
        call.inputs = list(tensors((args, kwargs)))
        self._stack.append(call)
        self.called.add(call.name)
        if self.origin is None and (bad := next((t for t in call.inputs if not _finite(t)), None)) is not None:
            where = call.parent.name if call.parent else call.name
            self._found("activation", where, f"what {call.name} is given is not finite: {_share(bad)}", bad)
        return tuple(self._own(a, call) for a in args), {k: self._own(v, call) for k, v in kwargs.items()}

    def _own(self, value: Any, call: _Call) -> Any:
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        view = value.view_as(value)
        view.register_hook(lambda grad: self._input_gradient(call, grad))
        return view

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._forward:
            return
        call = self._stack.pop()
        if not self._stack:
            self._last_at_top = call.name
        for tensor in tensors(output):
            if self.origin is None and not _finite(tensor):
                given = ", ".join(f"{_largest(t):.3g} ({_type(t)})" for t in call.inputs)
                text = f"the first output that is not finite is of {call.name}: {_share(tensor)}"
                self._found("activation", call.name, f"{text}, from inputs of at most {given or 'no size'}", tensor)
            elif self.origin is not None:
                self._rows_from(tensor)
            if tensor.requires_grad:
                tensor.register_hook(lambda grad: self._output_gradient(call, grad))
        call.inputs = []

    def _output_gradient(self, call: _Call, grad: Tensor) -> None:
        if self._gradient_is_fine(grad):
            call.largest_gradient = _largest(grad)
            return
        if self.origin is not None:
            return
        where = call.parent.name if call.parent else LOSS if call.name == self._last_at_top else call.name
        begins = f"{where} itself" if call.parent or where == LOSS else "what reads that"
        text = f"the first gradient that is not finite comes back to the output of {call.name}: {_share(grad)}"
        self._found("gradient", where, f"{text}; it begins in {begins}", grad)

    def _input_gradient(self, call: _Call, grad: Tensor) -> None:
        if not self._gradient_is_fine(grad) and self.origin is None:
            text = f"the first gradient that is not finite comes out of {call.name}: {_share(grad)}{_given(call)}"
            self._found("gradient", call.name, text, grad)

    def _parameter(self, name: str, grad: Tensor) -> None:
        if self._gradient_is_fine(grad) or self.origin is not None:
            return
        owner = name.rpartition(".")[0]
        known = owner in self.called
        text = f"the first gradient that is not finite is of {name}: {_share(grad)}"
        self._found("gradient", owner if known else LOSS, text if known else f"{text}; only the loss reads it", None)

    def _gradient_is_fine(self, grad: Tensor) -> bool:
        if self.origin is None:
            return _finite(grad)
        if self.origin.kind == "gradient":
            self._rows_from(grad)
        return True

    def _found(self, kind: Kind, module: str, text: str, tensor: Tensor | None) -> None:
        self.origin = Origin(kind, module, text)
        if tensor is not None:
            self._rows_from(tensor)

    def _rows_from(self, tensor: Tensor) -> None:
        """Experts see tokens in another order, so rows are read off the first tensor that has rows at all."""
        assert self.origin is not None
        if self.origin.rows or tensor.ndim < 2 or tensor.shape[0] != self.rows:
            return
        self.origin.rows = (~torch.isfinite(tensor)).flatten(1).any(1).nonzero().flatten().tolist()


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor of floating-point numbers in what a module takes or gives."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from tensors(inner)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from tensors([getattr(value, f.name) for f in fields(value)])


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().amax()) if tensor.numel() else 0.0


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _share(tensor: Tensor) -> str:
    nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    counts = " and ".join(f"{n:,} {word}" for n, word in ((nan, "NaN"), (infinite, "infinite")) if n)
    return f"{counts} of {tensor.numel():,} numbers in {_type(tensor)}"


def _given(call: _Call) -> str:
    known = call.largest_gradient
    return "" if known is None else f", where gradients of at most {known:.3g} went in"
