"""Who takes part in `bench kernels`: our kernel, the reference, torch's own function, torch.compile's, Liger's."""

import importlib
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.bench.record import checkout
from groundup.device import synchronize
from groundup.kernels import backend
from groundup.kernels.examples import Builder, Draw, Example, Size, outcome, tensors_of, upstream

Function = Callable[..., Any]

TORCH: dict[str, Function] = {
    "rmsnorm": lambda x, w: F.rms_norm(x, x.shape[-1:], w, 1e-5),
    "layernorm": lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b, 1e-5),
    "add_rmsnorm": lambda x, r, w: (x + r, F.rms_norm(x + r, x.shape[-1:], w, 1e-5)),
    "add_layernorm": lambda x, r, w, b: (x + r, F.layer_norm(x + r, x.shape[-1:], w, b, 1e-5)),
    "gated": lambda gate, up, _: F.silu(gate) * up,
    "softmax": lambda x: F.softmax(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "cross_entropy": lambda logits, targets: F.cross_entropy(logits, targets, reduction="sum"),
    "linear_cross_entropy": lambda h, w, targets: F.cross_entropy(h @ w.T, targets, reduction="sum"),
    "int8_product": lambda x, w: x @ w.to(x.dtype).T,
    "int8_transposed_product": lambda a, b: (a.T @ b).float(),
}
"""What a user of torch writes without this package; for int8, products in the type of what is multiplied. For what
is not here the reference stands, which calls torch."""


def liger() -> dict[str, Function]:
    """The Liger kernels that do what an operation here does; empty where the package is missing, here and in .peers."""
    if importlib.util.find_spec("liger_kernel") is None and not _find_among_peers():
        return {}
    made = importlib.import_module("liger_kernel.transformers.functional")
    return {
        "rmsnorm": lambda x, w: made.liger_rms_norm(x, w, 1e-5, in_place=False),
        "layernorm": lambda x, w, b: made.liger_layer_norm(x, w, b, 1e-5),
        "add_rmsnorm": lambda x, r, w: made.liger_fused_add_rms_norm(x, r, w, 1e-5, in_place=False),
        "gated": lambda gate, up, _: made.liger_swiglu(gate, up),
        "softmax": lambda x: made.liger_softmax(x),
        "cross_entropy": lambda logits, targets: made.liger_cross_entropy(logits, targets, reduction="sum"),
        "linear_cross_entropy": lambda h, w, targets: made.liger_fused_linear_cross_entropy(
            h, w, targets, reduction="sum"
        ),
    }


NOT_COMPILED = (
    "gated_linear_chunked", "gated_delta_chunked", "grouped_matmul", "adamw_step", "int8_product",
    "int8_transposed_product",
)  # fmt: skip
"""Loops over chunks or experts, which a compiler unrolls for minutes or steps around; AdamW's is fused by hand; int8's
references sum in double precision."""


def _find_among_peers() -> bool:
    """Make the peers' own environment the last place where packages are looked for, if Liger is there."""
    root = checkout()
    for folder in (root / ".peers" / "lib").glob("python*/site-packages") if root else ():
        if (folder / "liger_kernel").is_dir():
            sys.path.append(str(folder))
            return True
    return False


def contenders(name: str, op: Function, *, compiled: bool, by_kernel: bool) -> dict[str, Function]:
    """Functions that take the arguments of an operation's example.

    by_kernel: ask for the Triton kernel by name. Without, ours is the reference, and does not run beside itself.
    """
    reference = getattr(op, "reference")  # noqa: B009 an attribute that the decorator adds
    entries = {"ours": _named(op), "reference": reference} if by_kernel else {"ours": op}
    entries |= {who: table[name] for who, table in (("torch", TORCH), ("liger", liger())) if name in table}
    if compiled and name not in NOT_COMPILED:
        entries["compiled"] = torch.compile(reference)
    return entries


def _named(op: Function) -> Function:
    def call(*args: Any, **kwargs: Any) -> Any:
        with backend("triton"):
            return op(*args, **kwargs)

    return call


@dataclass
class Call:
    """A contender with inputs of its own (some write into theirs)."""

    function: Function
    example: Example
    device: torch.device
    with_gradients: bool
    calls: int = 1

    def once(self) -> None:
        said = self.function(*self.example.args, **self.example.kwargs)
        if self.with_gradients:
            outputs = [t for t in tensors_of(said) if t.requires_grad]
            torch.autograd.grad(outputs, self.example.leaves(), [upstream(t) for t in outputs], allow_unused=True)

    def rate(self) -> float:
        """Calls per second over `calls` of them."""
        synchronize(self.device)
        started = time.perf_counter()
        for _ in range(self.calls):
            self.once()
        synchronize(self.device)
        return self.calls / (time.perf_counter() - started)

    def settle(self, turn_seconds: float) -> None:
        """Let compilers and caches do their part; then find how many calls fill a turn."""
        for _ in range(2):
            self.once()
        self.calls = max(1, min(1000, round(turn_seconds * self.rate())))


def prepare(
    function: Function, build: Builder, size: Size, device: torch.device, dtype: torch.dtype, with_gradients: bool
) -> Call:
    return Call(function, build(Draw(device, dtype), size), device, with_gradients)


def moved_bytes(op: Function, example: Example) -> tuple[int, int]:
    """(forward, backward): each input read once and each output written once, which no implementation can avoid.

    Backward reads the inputs again and a gradient per output, and writes a gradient per leaf. Caches, and what has to
    be kept in between, are left out.
    """
    said = op(*example.args, **example.kwargs)
    inputs = _bytes(example.tensors())
    if said is None:
        return inputs + _bytes(list(tensors_of([example.args[i] for i in example.changed]))), 0
    outputs = _bytes(list(tensors_of(said)))
    differentiable = _bytes([t for t in tensors_of(said) if t.requires_grad])
    leaves = _bytes(example.leaves())
    return inputs + outputs, (inputs + differentiable + leaves if leaves else 0)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def results(function: Function, build: Builder, size: Size, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Outputs and gradients on an example of its own."""
    return outcome(function, build(Draw(device, dtype), size))
