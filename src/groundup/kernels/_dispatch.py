"""`@op`: the decorated body is the reference; a faster twin is found by path, not by registration.

kernels/norm.py:rmsnorm  ->  kernels/triton/norm.py:rmsnorm on CUDA, kernels/numba/norm.py:rmsnorm on CPU.
A twin has the same name and signature, and owns its autograd. What it cannot take it states in
`refuses(...) -> str | None` beside it, called with the same arguments (`refuses_rmsnorm` where one file
holds several ops). A default falls back to the reference and says so once; a backend that was asked for
by name and refuses is an error. By default a Triton twin runs where it was found right and not slower on this
device, see `_table`.

The requested backend is a plain module global because torch.compile can guard on one; a ContextVar would
break the graph.
"""

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from groundup.config import nearest
from groundup.kernels._compiler import constant
from groundup.kernels._table import objection

log = logging.getLogger(__name__)

BACKENDS = ("reference", "triton", "numba", "cuda")
DEFAULT = {"cuda": "triton", "cpu": "numba"}

_requested: str | None = None
_said: set[str] = set()


class backend:
    """`with backend("reference"): ...` asks for one implementation of every op inside.

    A refusal is then a ValueError instead of a fallback.
    """

    def __init__(self, name: str) -> None:
        if name not in BACKENDS:
            raise ValueError(f"backend {name!r} is unknown{nearest(name, BACKENDS)}")
        self.name = name

    def __enter__(self) -> None:
        global _requested
        self._before, _requested = _requested, self.name

    def __exit__(self, *_: object) -> None:
        global _requested
        _requested = self._before


def find_twin(module: str, name: str) -> ModuleType | str | None:
    """The twin's module, None where no file for it exists, or the reason why it cannot be imported."""
    package, _, leaf = module.rpartition(".")
    path = f"{package}.{name}.{leaf}"
    try:
        if importlib.util.find_spec(path) is None:
            return None
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        # The package `kernels/triton` itself may be absent: that is "no file", not "cannot be imported".
        if error.name and path.startswith(error.name):
            return None
        return f"the module {error.name!r} is not installed"


def _twin_of(twins: dict[str, Any], module: str, name: str) -> ModuleType | str | None:
    if name not in twins:
        twins[name] = find_twin(module, name)
    return twins[name]


def _first_tensor(args: tuple[Any, ...]) -> Tensor:
    for value in args:
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, Tensor):
            return value
    raise AssertionError("an op takes at least one positional tensor")


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        log.info(message)


def _never(*args: Any, **kwargs: Any) -> None:
    """The refusal of a kernel that takes everything."""


def op(reference: Callable[..., Any]) -> Callable[..., Any]:
    """Make `reference` look for its twin on the device of its first tensor."""
    name, module = reference.__name__, reference.__module__
    twins: dict[str, Any] = {}
    functions: dict[str, Callable[..., Any]] = {}
    refusals: dict[str, Callable[..., str | None]] = {}

    # Runs while torch.compile traces instead of being traced: importing is not a graph operation. It may not return
    # what it finds, as the compiler cannot guard on a function that comes from nowhere.
    @constant
    def find(wanted: str) -> str | None:
        """Put the twin and its refusal where the caller looks for them, or say why there is none."""
        twin = _twin_of(twins, module, wanted)
        if not isinstance(twin, ModuleType) or not hasattr(twin, name):
            return twin if isinstance(twin, str) else f"there is no {wanted} kernel"
        functions[wanted] = getattr(twin, name)
        refusals[wanted] = getattr(twin, f"refuses_{name}", None) or getattr(twin, "refuses", _never)
        return None

    def reason(wanted: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        if wanted == "numba" and torch.compiler.is_compiling():
            return "Numba code cannot be traced by torch.compile, which makes its own kernel"
        why = find(wanted)
        if why is None and wanted == "triton" and _requested is None:
            why = distrust(args)
        return refusals[wanted](*args, **kwargs) if why is None else why

    def distrust(args: tuple[Any, ...]) -> str | None:
        """Before the kernel is asked whether it takes these arguments: that may look at many."""
        first, compiling = _first_tensor(args), torch.compiler.is_compiling()
        # A compiled graph may have to serve sizes that it has not seen.
        return ask(first.device, first.dtype, None if compiling else first.numel(), compiling)

    @constant
    def ask(device: torch.device, dtype: torch.dtype, elements: int | None, compiling: bool) -> str | None:
        twin = _twin_of(twins, module, "triton")
        assert isinstance(twin, ModuleType)
        return objection(name, reference, twin, device, dtype, elements, compiling)

    @functools.wraps(reference)
    def call(*args: Any, **kwargs: Any) -> Any:
        wanted = _requested or DEFAULT.get(_first_tensor(args).device.type, "reference")
        if wanted == "reference":
            return reference(*args, **kwargs)
        why = reason(wanted, args, kwargs)
        if why is None:
            return functions[wanted](*args, **kwargs)
        if _requested is not None:
            raise ValueError(f"{name}: backend {wanted!r} was asked for, but {why}")
        if not torch.compiler.is_compiling() and _twin_of(twins, module, wanted) is not None:
            _say_once(f"{name}: {why}; using the reference instead of {wanted}")
        return reference(*args, **kwargs)

    call.reference = reference  # type: ignore[attr-defined]
    call.refusal = lambda wanted, *args, **kwargs: reason(wanted, args, kwargs)  # type: ignore[attr-defined]
    return call
