"""Entry 043: what the compiled step gains over torch for mixers that it did not know, in decoding and for a prompt.

    python experiments/043_mixers.py [--seconds 8] [--context 512] [--batches 1,8,32] [--threads 2]
                                     [--weights fp32,bf16] [--models 'latent;mamba-2']

Models of 10 to 30 million parameters. Steps of one token for each of BATCH sequences that hold CONTEXT tokens, through
torch (float32, pages are gathered) and through the compiled step; all take turns of four steps, the median of the turns
is given, and the distance of their quartiles. A line of JSON for each run is added to 043_mixers.jsonl.
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from groundup.device import environment
from groundup.files import write_atomic
from groundup.inference.batch_cache import PageStore
from groundup.inference.decode import CompiledDecoder
from groundup.inference.runner import Runner, Span, TorchRunner
from groundup.model import (
    BlockConfig,
    GatedDeltaConfig,
    GatedLinearConfig,
    LatentAttentionConfig,
    Mamba2Config,
    MLPConfig,
    ModelConfig,
    Transformer,
)
from groundup.model.block import MixerConfig

OUT = Path(__file__).with_suffix(".jsonl")
PAGE, STEPS, VOCAB, LAYERS, WIDTH = 16, 4, 4096, 8, 384

MIXERS: dict[str, MixerConfig] = {
    "latent": LatentAttentionConfig(12, kv_rank=128, d_nope=32, d_rope=16, d_value=32),
    "latent, queries compressed": LatentAttentionConfig(12, kv_rank=256, d_nope=32, d_rope=32, d_value=32, q_rank=192),
    "mamba-2": Mamba2Config(12, d_head=64, d_state=64),
    "gated delta": GatedDeltaConfig(6, d_key=64, d_value=128),
    "gated linear": GatedLinearConfig(6, d_key=64, d_value=64),
}


def model_of(mixer: MixerConfig, context: int) -> Transformer:
    blocks = (BlockConfig(mixer, MLPConfig(1024)),)
    return Transformer(ModelConfig(VOCAB, WIDTH, LAYERS, blocks, context_length=context + STEPS)).eval()


def new_store(model: Transformer, batch: int, context: int) -> PageStore:
    pages = -(-(context + STEPS) // PAGE)
    store = PageStore(model.config, batch * pages, PAGE, batch, pages)
    for row in range(batch):
        store.place(row, 0, range(row * pages, (row + 1) * pages))
    return store


def step_ms(runner: Runner, batch: int, context: int) -> float:
    """Of one step, as the mean of `STEPS`."""
    started = time.perf_counter()
    for step in range(STEPS):
        runner.run([Span([step], context + step, [], row, 1) for row in range(batch)])
    return 1e3 * (time.perf_counter() - started) / STEPS


def measure(name: str, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    context = options.context
    model = model_of(MIXERS[name], context)
    store = new_store(model, batch, context)
    runners: dict[str, Runner] = {"torch": TorchRunner(model, store)}
    for weights in options.weights.split(","):
        compiled = CompiledDecoder.build(model, store, weights, options.threads)
        assert isinstance(compiled, CompiledDecoder), compiled
        runners[weights] = compiled
    runners[options.weights.split(",")[0]].run([Span([3] * context, 0, [], row, 1) for row in range(batch)])
    times: dict[str, list[float]] = {way: [] for way in runners}
    deadline = time.monotonic() + options.seconds
    for turn in itertools.count():
        for way, runner in runners.items():
            taken = step_ms(runner, batch, context)
            if turn:
                times[way].append(taken)
        if turn > 2 and time.monotonic() > deadline:
            break
    row: dict[str, Any] = {"model": name, "batch": batch, "millions": sum(p.numel() for p in model.parameters()) / 1e6}
    for way, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        row |= {f"{way}_ms": round(middle, 3), f"{way}_iqr": round(high - low, 3)}
    return row | {"turns": len(times["torch"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="for each batch of each model")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", default="fp32,bf16")
    parser.add_argument("--models", default=";".join(MIXERS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name, batch in itertools.product(options.models.split(";"), map(int, options.batches.split(","))):
        rows.append(measure(name, batch, options))
        print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    line = json.dumps({"experiment": "043_mixers", "rows": rows, **vars(options), "environment": environment()})
    write_atomic(OUT, (OUT.read_text() if OUT.exists() else "") + line + "\n")


if __name__ == "__main__":
    main()
