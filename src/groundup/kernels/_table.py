"""What is known of the Triton kernels on a device: which are right, which are faster, and in which blocks.

By default a kernel is used where it was run once, on this very device, on a small example, and gave what the reference
gives: no list of device names says what works. `groundup bench kernels` then adds how fast it is; where the reference
is faster, it is used. A kernel that was asked for by name runs regardless.

All of it is kept in a JSON file per device, torch and Triton version in the cache folder, and is found out again when
the kernel's code changes.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from groundup.device import describe
from groundup.environ import cache_directory
from groundup.files import write_json
from groundup.kernels.examples import EXAMPLES, Draw, Example, Size, outcome

TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Largest difference allowed in a probe, relative to the largest entry. A kernel that is wrong is so by far more."""

UNTIL_MEASURED = {
    "adamw_step": "torch's kernel is fused too",
    "newton_schulz": "cuBLAS may take less for the whole product than a kernel for half of it",
}
"""Operations whose reference is good on a GPU: their kernels wait for a measurement that they are faster."""

FUSED_BY_COMPILER = frozenset(
    ("rmsnorm", "layernorm", "add_rmsnorm", "add_layernorm", "gated", "rotate", "softmax", "log_softmax")
    + ("causal_convolution", "quantize_tensor", "quantize_rows", "quantize_blocks")
)
"""In a compiled graph, the compiler fuses these with their neighbours, which it cannot do with a kernel of ours."""

COMPILED_MARGIN = 1.1
"""By which our kernel must beat the compiler's alone, to make up for what the graph then cannot fuse."""


class Table:
    """The file of one device. Reading a broken or missing one gives an empty table; writing may fail silently."""

    def __init__(self, path: Path, facts: dict[str, str]) -> None:
        self.path, self.facts = path, facts
        self.verdicts: dict[str, str | None] = {}
        self.speeds: dict[str, dict[str, list[float]]] = {}
        self.blocks: dict[str, dict[str, int]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            known = json.loads(path.read_text("utf-8"))
            self.verdicts, self.speeds, self.blocks = known["verdicts"], known["speeds"], known["blocks"]

    def save(self) -> None:
        kept = {**self.facts, "verdicts": self.verdicts, "speeds": self.speeds, "blocks": self.blocks}
        with contextlib.suppress(OSError):
            write_json(self.path, kept)

    def add_speed(self, key: str, elements: int, over_eager: float, over_compiled: float | None) -> None:
        """How many times as fast the kernel is as the reference, by itself and compiled, at this size."""
        compiled = over_eager if over_compiled is None else over_compiled
        self.speeds.setdefault(key, {})[str(elements)] = [over_eager, compiled]

    def speed(self, key: str, elements: int | None) -> list[float] | None:
        """Of the measured size that is nearest; without a size, which a compiled graph may not know, of the largest."""
        sizes = self.speeds.get(key)
        if not sizes:
            return None
        wanted = max(map(int, sizes)) if elements is None else max(1, elements)
        return sizes[min(sizes, key=lambda known: max(int(known), wanted) / max(1, min(int(known), wanted)))]


@functools.cache
def table_of(device: torch.device) -> Table:
    """The table of a device, read once in this process."""
    facts = {"device": describe(device), "torch": torch.__version__, "triton": _version("triton")}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return Table(cache_directory() / "kernels" / f"{digest}.json", facts)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


@functools.cache
def key_of(name: str, dtype: torch.dtype, twin: ModuleType) -> str:
    """An operation, a type, and the code of the kernel: what a verdict and a measurement are of."""
    return f"{name} {str(dtype).removeprefix('torch.')} {_code(twin)}"


@functools.cache
def _code(twin: ModuleType) -> str:
    return hashlib.sha256(Path(str(twin.__file__)).read_bytes()).hexdigest()[:12]


def objection(
    name: str,
    reference: Callable[..., Any],
    twin: ModuleType,
    device: torch.device,
    dtype: torch.dtype,
    elements: int | None,
    compiling: bool,
) -> str | None:
    """Why the kernel is not used by default here, or None. The first question about it runs it once."""
    table, key = table_of(device), key_of(name, dtype, twin)
    if why := _slower(name, table.speed(key, elements), compiling):
        return why
    if key not in table.verdicts:
        table.verdicts[key] = probe(name, reference, twin, device, dtype)
        table.save()
    return table.verdicts[key]


def _slower(name: str, speed: list[float] | None, compiling: bool) -> str | None:
    """Why the reference is to be preferred for its speed, or None."""
    fused = compiling and name in FUSED_BY_COMPILER
    if speed is not None:
        against = speed[1 if compiling else 0]
        enough = against >= (COMPILED_MARGIN if fused else 1.0)
        return None if enough else f"it was measured at {against:.2f} of the reference's speed"
    why = "the compiler fuses it with its neighbours" if fused else UNTIL_MEASURED.get(name)
    return why and f"{why}, and nothing faster was measured"


def probe(
    name: str, reference: Callable[..., Any], twin: ModuleType, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Run each example of the operation once, forward and backward, by kernel and reference: what is wrong, or None."""
    refuses = getattr(twin, f"refuses_{name}", None) or getattr(twin, "refuses", None)
    # Whatever mode the first caller is in, also that of a compiler which traces it.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for build in EXAMPLES.get(name, ()):
            one, same = build(Draw(device, dtype), Size()), build(Draw(device, dtype), Size())
            if refuses is not None and refuses(*one.args, **one.kwargs):
                continue
            if fault := _compare(getattr(twin, name), reference, one, same, TOLERANCE.get(dtype, 0.0)):
                return fault
    return None


def _compare(
    kernel: Callable[..., Any], reference: Callable[..., Any], one: Example, same: Example, tolerance: float
) -> str | None:
    try:
        got = outcome(kernel, one)
        difference = max((apart(a, b) for a, b in zip(got, outcome(reference, same), strict=True)), default=0.0)
    except Exception as error:  # a compiler's, a driver's or a launcher's: whatever it is, the kernel does not work
        return f"it failed here: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    return None if difference <= tolerance else f"it gave something else here, {difference:.1e} away"


def apart(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference relative to the largest entry; infinite where one is not finite or shapes differ."""
    if got.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    difference = float((got.double() - expected.double()).abs().max())
    scale = float(expected.double().abs().max())
    return difference / max(scale, 1e-30) if difference == difference else float("inf")
