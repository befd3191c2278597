"""Decoding on a GPU, three ways: pages gathered, pages read in place, and in place as a recorded CUDA graph.

    python benchmarks/decode_gpu.py [--batches 1,8,32] [--context 1024] [--seconds 4]

A model of SmolLM2-135M's shape with random weights in bfloat16; every sequence has CONTEXT tokens before the first step
that counts. The ways take turns, step by step of 32 tokens. The last line is JSON: tokens per second of each.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from groundup import presets
from groundup.device import environment
from groundup.inference.batch_cache import PageStore
from groundup.inference.graphs import GraphRunner
from groundup.inference.runner import Runner, Span, TorchRunner
from groundup.model import Transformer

PAGE, TURN = 16, 32
SHAPE: dict[str, Any] = dict(
    vocab_size=49_152, d_model=576, num_layers=30, num_heads=9, num_kv_heads=3, d_ff=1536, rope_theta=100_000.0,
    tie_embeddings=True, context_length=8192,
)  # fmt: skip


def new_store(model: Transformer, batch: int, context: int) -> PageStore:
    """Every row with pages for its context and a turn; what lies in them does not matter for speed."""
    pages = -(-(context + TURN) // PAGE)
    device, dtype = model.device, model.compute_dtype
    store = PageStore(model.config, batch * pages, PAGE, batch, pages, dtype, device)
    for row in range(batch):
        store.place(row, 0, range(row * pages, (row + 1) * pages))
    return store


def turn(runner: Runner, batch: int, context: int) -> float:
    """Tokens per second over `TURN` steps, each with its logits read back as sampling does."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    for step in range(TURN):
        logits = runner.run([Span([step], context + step, [], row, 1) for row in range(batch)])
        logits.argmax(-1).tolist()
    return batch * TURN / (time.perf_counter() - started)


def measure(model: Transformer, batch: int, context: int, seconds: float) -> dict[str, float | int]:
    store = new_store(model, batch, context)
    ways: dict[str, Callable[[], Runner]] = {
        "gathered": lambda: TorchRunner(model, store, in_place=False),
        "in place": lambda: TorchRunner(model, store, in_place=True),
        "graph": lambda: GraphRunner(model, store),
    }
    runners = {name: build() for name, build in ways.items()}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for runner in runners.values():
        turn(runner, batch, context)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or len(rates["graph"]) < 3:
        for name, runner in runners.items():
            rates[name].append(turn(runner, batch, context))
    row: dict[str, float | int] = {"batch": batch, "turns": len(rates["graph"])}
    for name, values in rates.items():
        low, middle, high = statistics.quantiles(values, n=4)
        row |= {name: round(middle, 1), f"{name} IQR": round(high - low, 1)}
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each batch, in turns (default 4)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/decode_gpu.py: torch sees no CUDA GPU here; nothing was measured")
        return 0
    model = Transformer(presets.llama(**SHAPE)).eval().to("cuda", torch.bfloat16)
    model.compute_dtype = torch.bfloat16
    rows = []
    for batch in map(int, options.batches.split(",")):
        rows.append(measure(model, batch, options.context, options.seconds))
        print(rows[-1], flush=True)
    print(json.dumps({"name": "decode on a GPU", "unit": "tokens/s", "context": options.context, "rows": rows,
                      "environment": environment()}))  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
