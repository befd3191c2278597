"""`groundup bench kernels`: each operation by our kernel, torch, torch.compile and Liger, forward and backward.

On a CUDA device "ours" is the Triton kernel; elsewhere it is what a model would run. All take turns. The bytes are
those that no implementation can avoid moving, and the roof is measured in the same run: max(bytes / bandwidth, FLOPs /
GEMM rate). What is found of a Triton kernel goes into the table that decides whether it is used on this device, see
`kernels/_table.py`; with `--tune` its block sizes are chosen first.
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from types import ModuleType
from typing import Any

import torch

from groundup import kernels
from groundup.accounting.hardware import Machine, probe
from groundup.bench.kernel_calls import Function, contenders, moved_bytes, prepare, results
from groundup.bench.kernel_tuning import tune
from groundup.bench.measure import Rates, interleave
from groundup.bench.record import Record, load_average, print_table, save
from groundup.device import default_device, environment, require_device
from groundup.kernels._dispatch import find_twin
from groundup.kernels._table import TOLERANCE, apart, key_of, table_of
from groundup.kernels.examples import EXAMPLES, Builder, Draw, Size
from groundup.kernels.quantized_linear import real

SIZES = {
    "cuda": {
        "large": Size(
            batch=4, seq=4096, d_model=4096, d_ff=11008, heads=32, kv_heads=8, d_head=128, vocab=32000, experts=8
        ),
        "small": Size(
            batch=1, seq=512, d_model=2048, d_ff=5632, heads=16, kv_heads=4, d_head=128, vocab=32000, experts=8
        ),
    },
    "cpu": {
        "model": Size(batch=4, seq=256, d_model=512, d_ff=1376, heads=8, kv_heads=4, d_head=64, vocab=4096, experts=4)
    },
    "tiny": {"tiny": Size(batch=1, seq=8, d_model=16, d_ff=24, heads=2, kv_heads=1, d_head=8, vocab=32, experts=2)},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFINITIONS = ("gated_linear_recurrent", "gated_linear_parallel", "gated_delta_recurrent")
"""Forms that say what is meant, token by token or all at once; training runs others."""

SIMULATED = ("int8_product", "int8_transposed_product")
"""Left out where the device has no units for them: nobody multiplies like that for speed."""

MASTER = ("adamw_step",)
"""Operations on what is float32 in every precision."""

COLUMNS = {
    "case": "ms of",
    "size": "size",
    "what": "pass",
    "ours": "ours",
    "spread": "IQR",
    "reference": "plain",
    "torch": "torch",
    "compiled": "compiled",
    "liger": "Liger",
    "ratio": "ratio",
    "mb": "MB",
    "roof": "of roof",
    "note": "",
}


@dataclass(frozen=True)
class Case:
    """One example of one operation, at one size in one type."""

    name: str
    build: Builder
    size_name: str
    size: Size
    dtype: torch.dtype
    device: torch.device

    @property
    def op(self) -> Function:
        return getattr(kernels, self.name)

    @property
    def label(self) -> str:
        return self.name if len(EXAMPLES[self.name]) == 1 else self.build.__name__

    @property
    def twin(self) -> ModuleType | None:
        """The Triton kernel's module, where the device runs it and it is there."""
        found = find_twin(self.op.reference.__module__, "triton") if self.device.type == "cuda" else None  # type: ignore[attr-defined]
        return found if isinstance(found, ModuleType) and hasattr(found, self.name) else None


def cases(device: torch.device, dtype: torch.dtype, names: Sequence[str], sizes: dict[str, Size]) -> Iterator[Case]:
    here = [name for name in names if name not in SIMULATED or real("int8", device.type)]
    for size_name, size in sizes.items():
        for name in here:
            for build in EXAMPLES[name]:
                yield Case(name, build, size_name, size, torch.float32 if name in MASTER else dtype, device)


def run_case(case: Case, machine: Machine, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Tune, measure and remember, the first and the last where there is a kernel.

    Blocks are chosen on an operation's first example: what they are kept under does not tell it from the others.
    """
    if options.tune and case.twin is not None and case.build is EXAMPLES[case.name][0]:
        tune(case.twin, case.op, lambda: case.build(Draw(case.device, case.dtype), case.size), case.device)
    rows = measure(case, machine, options)
    if case.twin is not None:
        remember(case, rows)
    return rows


def measure(case: Case, machine: Machine, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for the forward pass and, where there is a gradient, one for forward and backward together."""
    entries = contenders(case.name, case.op, compiled=options.compile, by_kernel=case.twin is not None)
    example = case.build(Draw(case.device, case.dtype), case.size)
    forward, backward = moved_bytes(case.op.reference, example)  # type: ignore[attr-defined]
    rows = []
    for what in ("forward", "both") if backward else ("forward",):
        both = what == "both"
        rates, failures = race(case, entries, both, options)
        moved = forward + (backward if both else 0)
        flops = example.flops[0] + (example.flops[1] if both else 0.0)
        least = max(moved / machine.bandwidth, flops / _peak(machine, case.dtype))
        rows.append(row(case, what, rates, failures, moved, least))
    return rows


def race(
    case: Case, entries: dict[str, Function], both: bool, options: argparse.Namespace
) -> tuple[dict[str, Rates], dict[str, str]]:
    """(rates, why there are none) by contender."""
    ready, failures = {}, {}
    for who, function in entries.items():
        try:
            call = prepare(function, case.build, case.size, case.device, case.dtype, both)
            call.settle(options.turn_seconds)
            ready[who] = call.rate
        except Exception as error:  # a compiler's, a driver's, a lack of memory: the others are measured nevertheless
            failures[who] = f"{who}: {(str(error).strip().splitlines() or [type(error).__name__])[0][:90]}"
    rates = interleave(ready, seconds=options.seconds, min_rounds=5, pause=0.0) if ready else {}
    return rates, failures


def row(
    case: Case, what: str, rates: dict[str, Rates], failures: dict[str, str], moved: int, least: float
) -> dict[str, Any]:
    """Milliseconds of each, and ours beside the fastest of the others that does not belong to us."""
    milliseconds = {who: 1000 / rate.median for who, rate in rates.items()}
    peers = {who: ms for who, ms in milliseconds.items() if who in ("torch", "compiled", "liger")}
    if "torch" not in peers and "reference" in milliseconds:  # which is what torch offers, then
        peers["reference"] = milliseconds["reference"]
    best = min(peers, key=lambda who: peers[who], default=None)
    ours = rates.get("ours")
    return {
        "name": case.name,
        "case": case.label,
        "size": case.size_name,
        "what": what,
        "dtype": str(case.dtype).removeprefix("torch."),
        "kernel": "triton" if case.twin else "as a model runs it",
        **milliseconds,
        "spread": ours and milliseconds["ours"] * ours.spread / ours.median,
        "mb": moved / 1e6,
        "roof": ours and least * ours.median,
        "peer": best,
        "ratio": ours and best and peers[best] / milliseconds["ours"],
        "note": "; ".join(failures.values()),
    }


def _peak(machine: Machine, dtype: torch.dtype) -> float:
    """FLOP/s of products in this type, as measured; in the precision that is faster where that type was not."""
    name = {torch.float32: "fp32", torch.bfloat16: "bf16"}.get(dtype, machine.precision)
    return machine.gemm_flops.get(f"{name} x{machine.threads}", machine.peak_flops)


def remember(case: Case, rows: list[dict[str, Any]]) -> None:
    """Into the table of this device: whether the kernel is right at this size, and how fast beside the reference."""
    assert case.twin is not None
    table, key = table_of(case.device), key_of(case.name, case.dtype, case.twin)
    wrong = check(case)
    if wrong is not None:
        table.verdicts[key] = wrong
        for each in rows:
            each["note"] = "; ".join(filter(None, (each["note"], wrong)))
    last = rows[-1]  # with its backward pass, where it has one
    if wrong is None and "ours" in last and "reference" in last:
        elements = next(t.numel() for t in case.build(Draw(case.device, case.dtype), case.size).tensors())
        compiled = last["compiled"] / last["ours"] if "compiled" in last else None
        table.add_speed(key, elements, last["reference"] / last["ours"], compiled)
    table.save()


def check(case: Case) -> str | None:
    """What is wrong with the kernel at this size, or None."""
    try:
        with kernels.backend("triton"):
            got = results(case.op, case.build, case.size, case.device, case.dtype)
    except ValueError as refused:
        return None if "was asked for, but" in str(refused) else f"it failed here: {refused}"
    except Exception as error:
        return f"it failed here: {type(error).__name__}"
    expected = results(case.op.reference, case.build, case.size, case.device, case.dtype)  # type: ignore[attr-defined]
    difference = max((apart(a, b) for a, b in zip(got, expected, strict=True)), default=0.0)
    return None if difference <= TOLERANCE[case.dtype] else f"it gave something else here, {difference:.1e} away"


def summary(rows: list[dict[str, Any]], machine: Machine, options: argparse.Namespace, left_out: int) -> Record:
    """`ratio` is the geometric mean of best peer's time over ours, over all rows; the smallest is in the details."""
    measured = [row for row in rows if row["ratio"]]
    ratios = [row["ratio"] for row in measured]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None
    return Record(
        name="kernels",
        ours=sum(row["ours"] for row in measured),
        peer=sum(row["ours"] * row["ratio"] for row in measured) if measured else None,
        peer_name="the fastest of torch, torch.compile and Liger, per operation" if measured else None,
        ratio=mean,
        unit="ms of all passes together; ratio is the geometric mean of the passes' (peer / ours)",
        device=machine.name,
        rows=rows,
        details={
            "smallest": min(measured, key=lambda row: row["ratio"], default=None),
            "machine": asdict(machine),
            "sizes": {name: asdict(size) for name, size in _sizes(options).items()},
            "left_out": left_out,
        },
        environment=environment(),
        versions=environment()["versions"],
    )


def _sizes(options: argparse.Namespace) -> dict[str, Size]:
    known = SIZES["tiny" if options.size == "tiny" else torch.device(options.device).type]
    return {name: size for name, size in known.items() if options.size in (None, name)}


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="groundup bench kernels", description=main.__doc__)
    parser.add_argument("--device", help="cpu or cuda (default: the fastest here)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bf16 on a GPU, else fp32")
    parser.add_argument(
        "--ops",
        nargs="+",
        choices=list(EXAMPLES),
        default=[name for name in EXAMPLES if name not in DEFINITIONS],
        metavar="OP",
        help=f"of: {', '.join(EXAMPLES)}",
    )
    parser.add_argument("--size", choices=sorted({name for sizes in SIZES.values() for name in sizes}))
    parser.add_argument("--seconds", type=float, default=0.5, help="per operation and pass (default 0.5)")
    parser.add_argument("--turn-seconds", type=float, default=0.03, help="of one contender's turn (default 0.03)")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds after which no operation is begun")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--tune", action="store_true", help="choose the block sizes of Triton kernels first")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/kernels-DEVICE.json")
    options = parser.parse_args(argv)
    options.device = str(require_device(options.device) if options.device else default_device())
    if options.size not in (None, "tiny") and options.size not in SIZES[torch.device(options.device).type]:
        parser.error(
            f"--size {options.size}: {options.device} has {', '.join(SIZES[torch.device(options.device).type])}"
        )
    return options


def main(argv: Sequence[str] = ()) -> int:
    """Every operation by our kernel, by torch, by torch.compile and by Liger where it is installed."""
    options = _arguments(argv)
    device, load_before = torch.device(options.device), load_average()
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    dtype = DTYPES[options.dtype or ("bf16" if device.type == "cuda" else "fp32")]
    machine = probe(device, 1.0)
    machine = replace(machine, device=str(device))
    rows, left_out, started = [], 0, time.monotonic()
    for case in cases(device, dtype, options.ops, _sizes(options)):
        if time.monotonic() - started > options.limit:
            left_out += 1
            continue
        try:
            made = run_case(case, machine, options)
        except torch.OutOfMemoryError as error:
            print(f"  {case.label} {case.size_name}: {str(error).splitlines()[0]}", flush=True)
            left_out += 1
            continue
        for each in made:
            print(
                f"  {each['case']} {each['size']} {each['what']}: {each['ratio'] or 0:.2f} of the best peer", flush=True
            )
        rows += made
    record = summary(rows, machine, options, left_out)
    record.load_average = {"before": load_before, "after": load_average()}
    print_table(f"kernels on {machine.name}, {options.device}", rows, COLUMNS)
    if options.save:
        print(f"saved {save(record, f'kernels-{device.type}')}")
    print(record.line(), flush=True)
    return 0 if rows else 1
