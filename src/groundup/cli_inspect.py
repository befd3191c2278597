"""`groundup inspect`: what is in a checkpoint, a model or a run; how a tensor lies in memory; what numbers can hold."""

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from groundup.cli_parts import Arguments, Parser, count, print_json, print_table
from groundup.config import plural

if TYPE_CHECKING:
    from groundup.inspection import Stored

HASH_SHOWN = 16


def options(parser: Parser) -> None:
    """The options of the verb."""
    add = parser.add_argument
    add("what", metavar="PATH|tensor|dtypes", help="a checkpoint (.../step-N), a run, a model folder, a .safetensors "
        "or .gguf file; or: tensor SHAPE OPERATION ..., as in: tensor 4,4 transpose=0,1 view=16; "
        "or: dtypes [NUMBER]")  # fmt: skip
    add("words", nargs="*", metavar="WORD", help="of tensor: the shape, then operations; of dtypes: a number to store")
    add("--tensors", type=count, default=20, metavar="N", help="most tensors to list (default: %(default)s)")
    add("--verify", action="store_true", help="read every byte: check a checkpoint's hashes, compute those of models")
    add("--json", action="store_true", help="print one JSON object instead of tables")


def run(options: Arguments) -> int:
    """Show it; returns the exit code."""
    if options.what == "tensor":
        return _tensor(options)
    if options.what == "dtypes":
        return _dtypes(options)
    if options.words:
        raise ValueError(f"{' '.join(options.words)!r}: nothing more is expected after a path")
    from groundup.inspection import inspect_path

    stored = inspect_path(options.what, options.verify)
    if options.json:
        print_json(asdict(stored) | {"path": str(stored.path), "parts": stored.totals()})
    else:
        _print_stored(stored, options.tensors)
    return 0


def _print_stored(stored: "Stored", most: int) -> None:
    print(f"{stored.path}: {stored.kind}")
    if stored.facts:
        print_table("", ["what is there", ""], stored.facts, words=(0, 1))
    if stored.settings:
        title = "chosen before the run (hyper-parameters), no state" if stored.kind == "checkpoint" else ""
        print_table(title, ["setting", "value"], stored.settings, words=(0, 1))
    if stored.tensors:
        totals = stored.totals()
        rows = [[part, f"{n:,}", f"{numbers:,}", f"{size:,}"] for part, (n, numbers, size) in totals.items()]
        title = "state: what changes with every step" if stored.kind == "checkpoint" else ""
        print_table(title, ["part", "tensors", "numbers", "bytes"], rows)
        shown = [[t.name, t.dtype, " x ".join(map(str, t.shape)), f"{t.bytes:,}"] for t in stored.tensors[:most]]
        if shown:
            print_table("", ["tensor", "type", "shape", "bytes"], shown, words=(0, 1))
        if (rest := len(stored.tensors) - most) > 0:
            print(f"and {plural(rest, 'tensor')} more; --tensors {len(stored.tensors)} shows all")
    if stored.files:
        print_table(
            "", ["file", "bytes", "SHA-256"], [[n, f"{b:,}", h[:HASH_SHOWN]] for n, b, h in stored.files], (0, 2)
        )


def _tensor(options: Arguments) -> int:
    from groundup.inspection import trace

    if not options.words:
        raise ValueError("tensor: give a shape, as in: groundup inspect tensor 2,2 transpose=0,1")
    try:
        shape = [int(size) for size in options.words[0].split(",")]
    except ValueError:
        raise ValueError(f"tensor: {options.words[0]!r} is no shape; write it as 4,4") from None
    steps = trace(shape, options.words[1:])
    if options.json:
        print_json([asdict(step) for step in steps])
        return 0
    rows = []
    for step in steps:
        if step.memory is None:
            rows.append([step.operation, "refused", "", "", "", ""])
            continue
        m = step.memory
        kind = "new" if step.operation == "start" else "copied" if step.copied else "same storage"
        rows.append([step.operation, kind, _tuple(m.shape), _tuple(m.strides), str(m.offset), _yes(m.is_contiguous)])
    print_table("element (i, j, ...) is at offset + i x stride 0 + j x stride 1 + ...",
                ["operation", "memory", "shape", "strides", "offset", "contiguous"], rows, words=(0, 1))  # fmt: skip
    if steps[-1].error:
        print(f"{steps[-1].operation} was refused: {steps[-1].error}")
    return 0


def _dtypes(options: Arguments) -> int:
    from groundup.inspection import number_types
    from groundup.inspection.numbers import underflow

    try:
        given = [float(word) for word in options.words]
    except ValueError:
        raise ValueError(f"dtypes: {' '.join(options.words)!r} is no number, such as 1e-8") from None
    kinds, stored = number_types(), [underflow(value) for value in given]
    if options.json:
        print_json([asdict(k) | {"dtype": str(k.dtype), "stores": [_json(s[k.name]) for s in stored]} for k in kinds])
        return 0
    headings = ["type", "bits", "exponent", "mantissa", "largest", "smallest", "subnormal", "step at 1"]
    rows = [
        [k.name, str(k.bits), str(k.exponent_bits), str(k.mantissa_bits)]
        + [f"{number:.5g}" for number in (k.largest, k.smallest, k.tiny, k.eps)]
        + [f"{s[k.name]:.6g}" for s in stored]
        for k in kinds
    ]
    print_table("", [*headings, *(f"{value:g} becomes" for value in given)], rows)
    print_table("", ["type", "where it is used"], [[k.name, k.used_for] for k in kinds], words=(0, 1))
    return 0


def _json(value: float) -> float | str:
    """JSON has neither infinity nor nan: they become words."""
    return value if math.isfinite(value) else str(value)


def _tuple(numbers: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, numbers))})"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
