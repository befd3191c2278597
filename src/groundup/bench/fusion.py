"""`groundup bench fusion`: one formula as many operations, as torch's own, and as one compiled kernel.

The arithmetic is the same. What differs is how often numbers travel: each operation of its own reads its operands from
memory and writes its result back. A *pass* is one tensor of the input's size, read or written. On operands that no
cache holds, time is bytes over bandwidth, so the passes predict the time; the last columns show how well. The
bandwidth is that of a copy in the same run, into memory just allocated, as every operation writes its result: on a CPU
the system hands out such pages one by one and zeroed, which can take longer than to fill them.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from groundup.bench.measure import interleave
from groundup.bench.record import Record, load_average, print_table
from groundup.device import synchronize

COPY = "a copy of the input"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COLUMNS = {
    "way": "computed as", "kernels": "operations", "predicted_mb": "MB by formula", "counted_mb": "MB counted",
    "predicted_ms": "ms by bandwidth", "measured_ms": "ms measured", "worth_mb": "MB copied in that time",
}  # fmt: skip


def gelu(x: Tensor) -> Tensor:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): Hendrycks & Gimpel 2016, section 2 (arXiv:1606.08415)."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def add_rmsnorm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The residual sum, and its RMSNorm: what every block of a Transformer begins with."""
    total = x + residual
    inverse = (total.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return total, total * inverse * weight


def add_rmsnorm_of_torch(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    return total, F.rms_norm(total, weight.shape, weight, 1e-5)


@dataclass(frozen=True)
class Formula:
    """A formula in plain operations and in torch's own, and the passes of each and of a single kernel."""

    plain: Callable[..., Any]
    own: Callable[..., Any]
    inputs: Callable[[int, int, torch.dtype, torch.device], tuple[Tensor, ...]]
    plain_passes: int
    own_passes: int
    least_passes: int


FORMULAS = {
    # x/2, x^3, * 0.044715, * sqrt(2/pi), tanh and 1 + read one and write one; + x and the product read two.
    "gelu": Formula(
        gelu, lambda x: F.gelu(x, approximate="tanh"),
        lambda rows, d, dtype, device: (torch.randn(rows, d, device=device).to(dtype),),
        6 * 2 + 2 * 3, 2, 2,
    ),
    # The sum 3, the square 2, its mean 1, the two products 2 each. Own: 3 and 2. Least: two read, two written.
    "add_rmsnorm": Formula(
        add_rmsnorm, add_rmsnorm_of_torch,
        lambda rows, d, dtype, device: (
            *torch.randn(2, rows, d, device=device).to(dtype), torch.ones(d, device=device, dtype=dtype),
        ),
        3 + 2 + 1 + 2 + 2, 3 + 2, 4,
    ),
}  # fmt: skip


class Traffic(TorchDispatchMode):
    """Counts what operations read and write, each operand once; a view moves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.operations = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            results = result if isinstance(result, tuple | list) else [result]
            operands = [*args, *(kwargs or {}).values(), *results]
            self.bytes += sum(x.numel() * x.element_size() for x in operands if isinstance(x, Tensor))
            self.operations += 1
        return result


def counted(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Traffic:
    with Traffic() as traffic:
        function(*inputs)
    return traffic


def ways(formula: Formula, compiled: bool) -> dict[str, tuple[Callable[..., Any], int]]:
    """Name -> the function and the passes it should take."""
    found = {
        COPY: (torch.clone, 2),
        "one operation at a time": (formula.plain, formula.plain_passes),
        "torch's own operations": (formula.own, formula.own_passes),
    }
    return found | ({"torch.compile": (torch.compile(formula.plain), formula.least_passes)} if compiled else {})


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    device = torch.device(options.device)
    formula = FORMULAS[options.op]
    inputs = formula.inputs(options.rows, options.d, DTYPES[options.dtype], device)
    once = inputs[0].numel() * inputs[0].element_size()
    found = ways(formula, not options.no_compile)
    given = {name: inputs[:1] if name == COPY else inputs for name in found}
    for name, (function, _) in found.items():
        function(*given[name])

    def rate(name: str) -> float:
        synchronize(device)
        begun = time.perf_counter()
        found[name][0](*given[name])
        synchronize(device)
        return 1 / (time.perf_counter() - begun)

    rates = interleave({name: partial(rate, name) for name in found}, seconds=options.seconds, pause=0.0)
    bandwidth = 2 * once * rates[COPY].median
    rows = []
    for name, (function, passes) in found.items():
        # What a compiled kernel moves is inside of it, where nothing counts.
        traffic = None if name == "torch.compile" else counted(function, given[name])
        seconds = 1 / rates[name].median
        rows.append(
            {
                "way": name,
                "kernels": traffic.operations if traffic else None,
                "predicted_mb": passes * once / 1e6,
                "counted_mb": traffic.bytes / 1e6 if traffic else None,
                "predicted_ms": 1e3 * passes * once / bandwidth,
                "measured_ms": 1e3 * seconds,
                "worth_mb": seconds * bandwidth / 1e6,
            }
        )
    return rows


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="groundup bench fusion", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--op", choices=FORMULAS, default="add_rmsnorm")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--d", type=int, default=4096, help="numbers per row; a tensor should exceed the caches")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which needs a C++ compiler")
    options = parser.parse_args(argv)
    if min(options.rows, options.d) < 1 or options.seconds <= 0:
        parser.error("--rows, --d and --seconds are at least 1, 1 and more than 0")
    return options


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    before = load_average()
    rows = measure(options)
    _, plain, *others = rows
    best = min(others, key=lambda row: row["measured_ms"])
    print_table(f"{options.op} of {options.rows} x {options.d} {options.dtype} on {options.device}", rows, COLUMNS)
    record = Record(
        name="fusion",
        ours=best["measured_ms"],
        peer=plain["measured_ms"],
        peer_name=plain["way"],
        ratio=plain["measured_ms"] / best["measured_ms"],
        unit="ms",
        device=options.device,
        rows=rows,
        details={"best": best["way"], **vars(options)},
        load_average={"before": before, "after": load_average()},
        versions={"torch": torch.__version__},
    )
    print(record.line())
    return 0
