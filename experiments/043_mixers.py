"""Entry 043: what the compiled step gains over torch for mixers that it did not know, in decoding and for a prompt.

    python experiments/043_mixers.py [--seconds 8] [--context 512] [--batches 1,8,32] [--threads 2]
                                     [--weights fp32,bf16] [--models 'latent;mamba-2']

Models of 10 to 30 million parameters. Steps of one token for each of BATCH sequences that hold CONTEXT tokens, through
torch (float32, pages are gathered) and through the compiled step; all take turns of four steps, the median of the turns
is given, and the distance of their quartiles. A line of JSON for each run is added to 043_mixers.jsonl.
"""

import argparse
import importlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch

from groundup.device import environment
from groundup.files import write_atomic
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

sys.path.insert(0, str(Path(__file__).resolve().parent))

variants = importlib.import_module("039_variants")

OUT = Path(__file__).with_suffix(".jsonl")
STEPS, VOCAB, LAYERS, WIDTH = 4, 4096, 8, 384

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


def measure(name: str, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    context = options.context
    model = model_of(MIXERS[name], context)
    store = variants.new_store(model, batch)
    runners: dict[str, Runner] = {"torch": TorchRunner(model, store)}
    for weights in options.weights.split(","):
        compiled = CompiledDecoder.build(model, store, weights, options.threads)
        assert isinstance(compiled, CompiledDecoder), compiled
        runners[weights] = compiled
    runners[options.weights.split(",")[0]].run([Span([3] * context, 0, [], row, 1) for row in range(batch)])
    times = variants.in_turns(runners, batch, context, options.seconds, STEPS)
    row: dict[str, Any] = {"model": name, "batch": batch, "millions": sum(p.numel() for p in model.parameters()) / 1e6}
    for way, values in times.items():
        row[f"{way}_ms"], row[f"{way}_iqr"] = variants.spread(values)
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
