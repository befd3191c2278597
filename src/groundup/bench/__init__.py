"""Benchmarks: groundup and its peers, interleaved in one run. `groundup bench` lists them."""

import importlib
import sys
from collections.abc import Callable, Sequence

from groundup.config import nearest

Benchmark = Callable[[Sequence[str]], int]

# Name -> what it measures. The module of that name (with _ for -) has `main`; it is imported when it is to run.
REGISTRY = {
    "ngram": "Tokens per second of training a Kneser-Ney model on one core, beside KenLM's lmplz.",
    "train-step": "Tokens per second of whole training steps, beside litgpt and Hugging Face transformers.",
    "kernels": "Milliseconds of each operation, beside torch, torch.compile and Liger, and the share of the roofline.",
    "fusion": "Bytes and time of one formula as many operations and as one: GELU, or RMSNorm of a residual sum.",
    "collectives": "Milliseconds of an all-reduce over ranks of this machine, ours beside torch.distributed's.",
    "parallel": "Tokens per second of DDP and FSDP over ranks of this machine, ours beside torch's.",
    "pipeline": "Share of time that pipeline schedules leave idle, measured beside the formula and the simulator.",
    "shakespeare": "Loss after three minutes on a CPU, character by character, beside nanoGPT's recipe.",
    "decode": "Tokens per second of generating, beside llama.cpp, vLLM and Hugging Face, and of the roofline.",
    "tokenizer-train": "Seconds to learn a vocabulary, beside gigatoken, Hugging Face tokenizers and others.",
    "tokenizer-encode": "MB of text per second to ids, beside gigatoken, tiktoken and Hugging Face tokenizers.",
    "tokenizer-decode": "MB of text per second from ids, beside the same.",
}


def benchmark_of(name: str) -> Benchmark:
    """The function that runs a benchmark of the registry with its own options."""
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}").main


def run(name: str | None = None, argv: Sequence[str] = ()) -> int:
    """Run one benchmark with its own options, or every one of them ("all"); without a name, list them.

    Returns the exit code: 0 when every benchmark that was asked for ran.
    """
    if name is None:
        print(listing())
        return 0
    if name == "all":
        return max(benchmark_of(each)(argv) for each in REGISTRY)
    if name not in REGISTRY:
        print(f"groundup bench: no benchmark {name!r}{nearest(name, [*REGISTRY, 'all'])}", file=sys.stderr)
        return 2
    return benchmark_of(name)(argv)


def listing() -> str:
    """One line per benchmark: its name and what it measures."""
    lines = [f"{name:<17} {summary}" for name, summary in REGISTRY.items()]
    return "\n".join([*lines, f"{'all':<17} Every one of them. `groundup bench NAME --help` for options."])
