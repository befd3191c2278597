"""Benchmarks: groundup and its peers, interleaved in one run. `groundup bench` lists them."""

import sys
from collections.abc import Callable, Sequence

from groundup.bench import tokenizer_decode, tokenizer_encode, tokenizer_train, train_step
from groundup.config import nearest

Benchmark = Callable[[Sequence[str]], int]

REGISTRY: dict[str, Benchmark] = {
    "train-step": train_step.main,
    "tokenizer-train": tokenizer_train.main,
    "tokenizer-encode": tokenizer_encode.main,
    "tokenizer-decode": tokenizer_decode.main,
}


def run(name: str | None = None, argv: Sequence[str] = ()) -> int:
    """Run one benchmark with its own options, or every one of them ("all"); without a name, list them.

    Returns the exit code: 0 when every benchmark that was asked for ran.
    """
    if name is None:
        print(listing())
        return 0
    if name == "all":
        return max(benchmark(argv) for benchmark in REGISTRY.values())
    if name not in REGISTRY:
        print(f"groundup bench: no benchmark {name!r}{nearest(name, [*REGISTRY, 'all'])}", file=sys.stderr)
        return 2
    return REGISTRY[name](argv)


def listing() -> str:
    """One line per benchmark: its name and the first line of what it measures."""
    lines = [f"{name:<17} {(benchmark.__doc__ or '').splitlines()[0]}" for name, benchmark in REGISTRY.items()]
    return "\n".join([*lines, f"{'all':<17} Every one of them. `groundup bench NAME --help` for options."])
