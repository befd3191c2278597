"""Entry 039: do attention's variants decode in the order that their bytes predict, through the engine's page store?

    python experiments/039_variants.py [--seconds 30] [--context 1024] [--batches 1,8] [--threads 1]

One model (4 layers, width 512, 16 heads of 32 channels) in seven variants, the last three with a window in every layer
or in all but one. Steps of one token for each of BATCH sequences that hold CONTEXT tokens, through torch (pages are
gathered) and through the compiled step in fp32; all take turns. `least_ms` is the roofline's: max(FLOPs / peak, bytes /
bandwidth) of every operation, on the machine as measured. `pairs` is the share of pairs of variants, of those that the
roofline tells apart by a tenth or more, whose measured order is the predicted one. The last line is JSON, also in
039_variants.jsonl.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from groundup.accounting import Ceiling, probe, step_work
from groundup.device import environment
from groundup.files import write_atomic
from groundup.inference.batch_cache import PageStore, bytes_per_token, reach
from groundup.inference.decode import CompiledDecoder
from groundup.inference.runner import Runner, Span, TorchRunner
from groundup.inference.scheduler import pages_at_once
from groundup.model import AttentionConfig, BlockConfig, LatentAttentionConfig, MLPConfig, ModelConfig, Transformer
from groundup.profiling.measure import with_threads

OUT = Path(__file__).with_suffix(".jsonl")
PAGE, STEPS, LAYERS = 16, 8, 4
APART = 1.1
Way = TypeVar("Way", bound=Hashable)

HEADS = {"multi-head": 16, "grouped, 4 kv heads": 4, "multi-query": 1}
MIXERS: dict[str, tuple[AttentionConfig | LatentAttentionConfig, ...]] = {
    **{name: (AttentionConfig(16, kv_heads, 32),) for name, kv_heads in HEADS.items()},
    "latent, rank 64": (LatentAttentionConfig(16, kv_rank=64, d_nope=32, d_rope=16, d_value=32),),
    "multi-head, window 128": (AttentionConfig(16, 16, 32, window=128),),
    "multi-head, 3 of 4 with window 128": (*[AttentionConfig(16, 16, 32, window=128)] * 3, AttentionConfig(16, 16, 32)),
    "grouped, window 128": (AttentionConfig(16, 4, 32, window=128),),
}


def model_of(mixers: tuple[AttentionConfig | LatentAttentionConfig, ...], context: int) -> Transformer:
    blocks = tuple(BlockConfig(mixer, MLPConfig(512)) for mixer in mixers)
    return Transformer(ModelConfig(512, 512, LAYERS, blocks, context_length=context + STEPS)).eval()


def new_store(model: Transformer, batch: int) -> PageStore:
    """Room for the model's context in every row."""
    assert model.config.context_length is not None
    pages = -(-model.config.context_length // PAGE)
    store = PageStore(model.config, batch * pages, PAGE, batch, pages)
    for row in range(batch):
        store.place(row, 0, range(row * pages, (row + 1) * pages))
    return store


def step_ms(runner: Runner, batch: int, context: int, steps: int) -> float:
    """Of one step, as the mean of so many."""
    started = time.perf_counter()
    for step in range(steps):
        runner.run([Span([step], context + step, [], row, 1) for row in range(batch)])
    return 1e3 * (time.perf_counter() - started) / steps


def in_turns(
    runners: Mapping[Way, Runner], batch: int, context: int, seconds: float, steps: int = STEPS
) -> dict[Way, list[float]]:
    """Milliseconds of a step in each turn of `steps`, by runner. The first turn compiles, and touches the memory."""
    times: dict[Way, list[float]] = {way: [] for way in runners}
    deadline = time.monotonic() + seconds
    for turn in itertools.count():
        for way, runner in runners.items():
            taken = step_ms(runner, batch, context, steps)
            if turn:
                times[way].append(taken)
        if turn > 2 and time.monotonic() > deadline:
            break
    return times


def spread(values: list[float]) -> tuple[float, float]:
    """Their median, and the distance of their quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return round(middle, 3), round(high - low, 3)


def facts(name: str, model: Transformer, batch: int, context: int, machine: Ceiling) -> dict[str, Any]:
    config = model.config
    work = step_work(config, "decode", batch=batch, seq=context)
    held = pages_at_once(context, PAGE, 1, reach(config)) * PAGE
    return {
        "variant": name,
        "batch": batch,
        "cache_kb_per_token": bytes_per_token(config, torch.float32) / 1024,
        "cache_mb_held": round(batch * held * bytes_per_token(config, torch.float32) / 2**20, 2),
        "mb_moved": round(sum(row.bytes_moved for row in work) / 1e6, 2),
        "least_ms": round(1e3 * sum(row.least_seconds(machine) for row in work), 3),
    }


def ranked(rows: list[dict[str, Any]], measured: str) -> float:
    """The share of pairs in the predicted order, of those that are predicted apart."""
    pairs = [
        (a, b) if a["least_ms"] > b["least_ms"] else (b, a)
        for a, b in itertools.combinations([row for row in rows if measured in row], 2)
        if max(a["least_ms"], b["least_ms"]) >= APART * min(a["least_ms"], b["least_ms"])
    ]
    return sum(slow[measured] > fast[measured] for slow, fast in pairs) / len(pairs)


def measure(batch: int, context: int, seconds: float, threads: int, machine: Ceiling) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    runners: dict[tuple[str, str], Runner] = {}
    for name, mixers in MIXERS.items():
        model = model_of(mixers, context)
        store = new_store(model, batch)
        rows[name] = facts(name, model, batch, context, machine)
        compiled = CompiledDecoder.build(model, store, "fp32", threads)
        runners[name, "torch_ms"] = TorchRunner(model, store)
        if isinstance(compiled, CompiledDecoder):
            runners[name, "compiled_ms"] = compiled
    for (name, way), values in in_turns(runners, batch, context, seconds).items():
        rows[name][way], rows[name][f"{way}_iqr"] = spread(values)
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="for each batch")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = with_threads(probe(torch.device("cpu"), 1.0), options.threads)
    roof = Ceiling(machine.name, machine.peak_flops, machine.bandwidth)
    rows, pairs = [], {}
    for batch in map(int, options.batches.split(",")):
        here = measure(batch, options.context, options.seconds, options.threads, roof)
        pairs |= {f"batch {batch}, {way}": round(ranked(here, way), 3) for way in ("torch_ms", "compiled_ms")}
        rows += here
    for row in rows:
        print("  ".join(f"{name}={value}" for name, value in row.items()))
    result = {"experiment": "039_variants", "pairs": pairs, "rows": rows, "context": options.context}
    result |= {"bandwidth": roof.bandwidth, "peak_flops": roof.peak_flops, "threads": options.threads}
    line = json.dumps(result | {"environment": environment()})
    write_atomic(OUT, line + "\n")
    print(line)


if __name__ == "__main__":
    main()
