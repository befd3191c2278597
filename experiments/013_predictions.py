"""Entry 013: is a training step's time and memory known before the model exists?

    python experiments/013_predictions.py [--device cuda] [--only NAME ...]

For each configuration two shallow models are measured, the whole one is predicted from them (`profiling.predict_step`),
and the prediction is written down. Then the whole model is trained for a few steps. Every line goes to
013_predictions.jsonl beside this file: each prediction stands before what came.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from groundup import presets
from groundup.accounting import count_parameters
from groundup.accounting.hardware import probe
from groundup.config import to_dict
from groundup.device import default_device, environment, release_memory, require_device
from groundup.files import write_atomic
from groundup.model import (
    AttentionConfig,
    BlockConfig,
    GatedDeltaConfig,
    LatentAttentionConfig,
    MLPConfig,
    ModelConfig,
    MoEConfig,
)
from groundup.profiling.prediction import StepCost, StepSettings, perform, predict_step


def dense(d_model: int, layers: int, vocab: int = 4096, context: int = 256, **dials: Any) -> ModelConfig:
    """Qwen3's block, as the planner of `groundup build` takes it."""
    dials = {"tie_embeddings": False, **dials}
    return presets.qwen3(vocab_size=vocab, d_model=d_model, num_layers=layers, context_length=context, **dials)


def pattern(d_model: int, layers: int, *blocks: BlockConfig, **more: Any) -> ModelConfig:
    return ModelConfig(4096, d_model, layers, blocks, 256, **more)


def heads(d_model: int, **more: Any) -> AttentionConfig:
    return AttentionConfig(d_model // 64, d_model // 64, 64, **more)


def block(mixer: Any) -> BlockConfig:
    return BlockConfig(mixer, MLPConfig(704))


def rows(batch_size: int, context_length: int = 256, **more: Any) -> StepSettings:
    return StepSettings(batch_size, context_length, **{"precision": "bf16", **more})


CPU: dict[str, tuple[ModelConfig, StepSettings]] = {
    "build 4 x 192": (dense(192, 4), rows(16, optimizer="muon_adamw", compiled=True)),
    "build 4 x 256": (dense(256, 4), rows(16, optimizer="muon_adamw", compiled=True)),
    "build 10 x 320": (dense(320, 10), rows(16, optimizer="muon_adamw", compiled=True)),
    "eager 4 x 256": (dense(256, 4), rows(16, optimizer="muon_adamw")),
    "deep and narrow": (dense(128, 16), rows(16)),
    "wide and shallow": (dense(768, 3), rows(8)),
    "fp32": (dense(256, 8), rows(8, precision="fp32")),
    "fp32, 12 layers": (dense(384, 12), rows(4, precision="fp32")),
    "long context": (dense(256, 6, context=1024), rows(2, 1024)),
    "short context": (dense(256, 8), rows(64, 32)),
    "vocabulary 32,768": (dense(256, 6, vocab=32_768), rows(8)),
    "tied": (dense(384, 6, vocab=16_384, tie_embeddings=True), rows(8)),
    "grouped queries": (dense(512, 6, num_heads=8, num_kv_heads=2), rows(8)),
    "micro-batches": (dense(320, 8), rows(16, micro_batches=4)),
    "recomputed": (dense(256, 12), rows(16, recompute=True)),
    "recomputed, micro-batches, fp32": (dense(256, 8), rows(16, micro_batches=2, recompute=True, precision="fp32")),
    "GPT-2": (presets.gpt2(vocab_size=8192, num_layers=8, d_model=256, context_length=256), rows(8)),
    "local and global windows": (
        pattern(256, 12, *[block(heads(256, window=64))] * 2, block(heads(256))),
        rows(8),
    ),
    "experts": (pattern(192, 6, BlockConfig(heads(192), MoEConfig(8, 2, 256))), rows(8)),
    "latent attention": (
        pattern(256, 6, block(LatentAttentionConfig(4, 128, 64, 32, 64))), rows(8)
    ),
    "Mamba-2": (presets.mamba2(vocab_size=4096, num_layers=8, d_model=256, d_state=64, context_length=256), rows(8)),
    "gated delta rule and attention": (
        pattern(256, 16, *[block(GatedDeltaConfig(4, 64, 64))] * 3, block(heads(256))),
        rows(8),
    ),
    "85 M parameters": (dense(768, 10, vocab=8192), rows(4)),
}  # fmt: skip
GPU: dict[str, tuple[ModelConfig, StepSettings]] = {
    "GPT-2 small": (presets.gpt2("small"), rows(16, 1024)),
    "GPT-2 medium, compiled": (presets.gpt2("medium"), rows(8, 1024, compiled=True)),
    "24 x 1024, compiled": (dense(1024, 24, 32_768, 2048), rows(8, 2048, compiled=True, optimizer="muon_adamw")),
    "24 x 2048, micro-batches": (dense(2048, 24, 32_768, 2048), rows(8, 2048, micro_batches=4)),
    "24 x 2048, recomputed": (dense(2048, 24, 32_768, 2048), rows(8, 2048, recompute=True)),
    "experts": (
        replace(pattern(1024, 12, BlockConfig(heads(1024), MoEConfig(16, 2, 1024))), context_length=1024), rows(8, 1024)
    ),
    "Mamba-2": (presets.mamba2("370m"), rows(4, 2048)),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--out", type=Path, help="default: beside this file, named by the device if it is no CPU")
    options = parser.parse_args()
    device = require_device(options.device) if options.device else default_device()
    machine = probe(device, 1.0)
    cases = GPU if device.type == "cuda" else CPU
    ending = ".jsonl" if device.type == "cpu" else f"_{device.type}.jsonl"
    out = options.out or Path(__file__).with_suffix(ending)
    lines: list[dict[str, Any]] = [{"environment": environment(), "device": str(device), "threads": machine.threads}]
    for name, (config, settings) in cases.items():
        if options.only and name not in options.only:
            continue
        for line in predicted_and_measured(config, settings, device):
            lines.append({"case": name, **line})
            write_atomic(out, "".join(json.dumps(line) + "\n" for line in lines))
        print(summary(*lines[-2:]), file=sys.stderr, flush=True)
    print(json.dumps(verdict(lines[1:])))


def predicted_and_measured(
    config: ModelConfig, settings: StepSettings, device: torch.device
) -> Iterator[dict[str, Any]]:
    began = time.perf_counter()
    found = predict_step(config, settings, device)
    yield {
        "predicted": asdict(found.cost), "at": time.time(), "took": time.perf_counter() - began,
        "parameters": count_parameters(config).total, "settings": asdict(settings), "model": to_dict(config),
        "seconds_by_rounds": found.seconds, "peaks_by_rounds": found.peaks, "rounds": found.rounds,
    }  # fmt: skip
    release_memory()
    measured = perform(config, settings, device)
    release_memory()
    yield {"measured": asdict(measured), "at": time.time()}


def errors(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """Measured over predicted, less one, as in the ledger."""
    keys = [field for field in asdict(StepCost(0.0, 0))]
    return {key: after["measured"][key] / before["predicted"][key] - 1 for key in keys}


def summary(before: dict[str, Any], after: dict[str, Any]) -> str:
    """One row of the table in docs/profiling.md."""
    off = errors(before, after)
    seconds, size = ([values[key] for values in (before["predicted"], after["measured"])] for key in off)
    return (
        f"| {before['case']} | {before['parameters'] / 1e6:.1f} M "
        f"| {1e3 * seconds[0]:,.0f} | {1e3 * seconds[1]:,.0f} | {off['seconds']:+.1%} "
        f"| {size[0] / 2**20:,.0f} | {size[1] / 2**20:,.0f} | {off['peak_bytes']:+.1%} |"
    )


def verdict(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """How many configurations were within the goals."""
    found = [errors(before, after) for before, after in zip(lines[::2], lines[1::2], strict=True)]
    return {
        "name": "predictions",
        "rows": [summary(*pair) for pair in zip(lines[::2], lines[1::2], strict=True)],
        "configurations": len(found),
        "seconds_within_10_percent": sum(abs(off["seconds"]) <= 0.10 for off in found),
        "peak_bytes_within_5_percent": sum(abs(off["peak_bytes"]) <= 0.05 for off in found),
        "worst": {key: max((abs(off[key]) for off in found), default=0.0) for key in ("seconds", "peak_bytes")},
    }


if __name__ == "__main__":
    main()
