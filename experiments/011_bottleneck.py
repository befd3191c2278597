"""Entry 011: is the bottleneck that `groundup profile` names the true one? It is removed, and the step is timed again.

    OMP_NUM_THREADS=1 python experiments/011_bottleneck.py [REPEATS]

profiles each case and the same case with the named group made small, in turns, on one thread, then attention's variants
in decoding, and writes one line for each to 011_bottleneck.jsonl beside this file. `predicted` is what the first
profile says that the second step takes.
"""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from groundup.accounting import probe
from groundup.device import environment
from groundup.files import write_atomic
from groundup.model import AttentionConfig, BlockConfig, LatentAttentionConfig, MLPConfig, ModelConfig, Transformer
from groundup.profiling import Profile, ProfileSettings, bottleneck, profile_model
from groundup.profiling.measure import with_threads

SLOW_SECONDS = 0.1


def model(*, vocab: int = 256, d_model: int = 64, layers: int = 2, heads: int = 1, d_ff: int = 64) -> ModelConfig:
    """A plain model; each case enlarges one part of it."""
    mixer = AttentionConfig(heads, heads, 16)
    return ModelConfig(vocab, d_model, layers, (BlockConfig(mixer, MLPConfig(d_ff, gated=False)),), 4096)


@dataclass(frozen=True)
class Case:
    """A step with one large part, and the same without it. `slow_data`: each batch takes SLOW_SECONDS to make."""

    group: str
    whole: ModelConfig
    removed: ModelConfig
    settings: ProfileSettings
    removed_settings: ProfileSettings | None = None
    slow_data: bool = False


BASE = ProfileSettings(batch_size=8, context_length=64, precision="fp32", steps=3, threads=1)
# Muon's update of three million parameters for four tokens; without it there is still AdamW's.
FEW = replace(BASE, batch_size=4, context_length=1)
CASES = [
    Case("head and loss", model(vocab=16_384), model(), BASE),
    Case("feed-forward", model(d_ff=8192), model(), BASE),
    Case("attention", model(heads=16), model(heads=16), replace(BASE, batch_size=1, context_length=2048),
         replace(BASE, batch_size=64, context_length=32)),
    Case("optimizer", model(d_model=512, d_ff=1024), model(d_model=512, d_ff=1024),
         replace(FEW, optimizer="muon_adamw"), FEW),
    Case("data", model(d_ff=512), model(d_ff=512), BASE, slow_data=True),
]  # fmt: skip


def batches(config: ModelConfig, settings: ProfileSettings, seconds: float) -> Iterator[dict[str, torch.Tensor]]:
    assert settings.context_length is not None
    shape = (settings.batch_size, settings.context_length + 1)
    for seed in itertools.count():
        time.sleep(seconds)
        yield {"tokens": torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))}


def measure(case: Case, removed: bool) -> Profile:
    config = case.removed if removed else case.whole
    settings = case.removed_settings if removed and case.removed_settings else case.settings
    source = batches(config, settings, SLOW_SECONDS if case.slow_data and not removed else 0.0)
    return profile_model(Transformer(config), settings, machine=MACHINE, batches=source)[0]


def compare(case: Case, repeats: int) -> dict[str, object]:
    """The whole step and the reduced one in turns; the fastest of each, since other work only adds time."""
    pairs = [(measure(case, False), measure(case, True)) for _ in range(repeats)]
    whole = min((before for before, _ in pairs), key=lambda p: p.step_seconds)
    removed = min((after for _, after in pairs), key=lambda p: p.step_seconds)
    share = whole.group(case.group).time_share
    least = whole.group(case.group).least_seconds
    left = removed.group(case.group).least_seconds / least if least else 0.0
    return {
        "case": case.group,
        "named": [bottleneck(before).group for before, _ in pairs],
        "named_after": [bottleneck(after).group for _, after in pairs],
        "share": share,
        "shares": [before.group(case.group).time_share for before, _ in pairs],
        "flops_share": whole.group(case.group).flops_share,
        "left": left,
        "unattributed": whole.unattributed_share,
        "overhead": statistics.median(before.overhead for before, _ in pairs),
        "step_ms": 1e3 * whole.step_seconds,
        "predicted_ms": 1e3 * whole.step_seconds * (1 - share * (1 - left)),
        "measured_ms": 1e3 * removed.step_seconds,
    }


def decoding(repeats: int) -> list[dict[str, object]]:
    """16 heads of 64 channels on 16 rows of 1,024 tokens: what the roofline counts for attention, and what it takes."""
    mixers: dict[str, AttentionConfig | LatentAttentionConfig] = {
        "multi-head": AttentionConfig(16, 16, 64),
        "grouped, 4 kv heads": AttentionConfig(16, 4, 64),
        "multi-query": AttentionConfig(16, 1, 64),
        "latent, rank 128": LatentAttentionConfig(16, kv_rank=128, d_nope=64, d_rope=32, d_value=64),
    }
    settings = replace(BASE, phase="decode", batch_size=16, context_length=1024, steps=4)
    models = {
        name: Transformer(ModelConfig(256, 512, 2, (BlockConfig(mixer, MLPConfig(64, gated=False)),), 2048))
        for name, mixer in mixers.items()
    }
    found: dict[str, list[Profile]] = {name: [] for name in models}
    for _, (name, model) in itertools.product(range(repeats), models.items()):
        found[name].append(profile_model(model, settings, machine=MACHINE)[0])
    return [_decoding_row(name, min(profiles, key=lambda p: p.traced_seconds)) for name, profiles in found.items()]


def _decoding_row(name: str, profile: Profile) -> dict[str, object]:
    row = profile.group("attention")
    return {
        "decoding": name,
        "intensity": row.flops / row.bytes_moved,
        "megabytes": row.bytes_moved / 1e6,
        "least_ms": 1e3 * row.least_seconds,
        "measured_ms": 1e3 * row.seconds,
        "tokens_per_second": profile.tokens_per_second,
    }


if __name__ == "__main__":
    MACHINE = with_threads(probe(torch.device("cpu"), 1.0), 1)
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    rates = {"fp32_flops": MACHINE.gemm_flops["fp32 x1"], "bandwidth": MACHINE.bandwidth}
    lines: list[dict[str, object]] = [{"environment": environment(), "slow_seconds": SLOW_SECONDS, **rates}]
    for result in itertools.chain((compare(case, repeats) for case in CASES), decoding(repeats)):
        lines.append(result)
        print(json.dumps(result), file=sys.stderr, flush=True)
    write_atomic(Path(__file__).with_suffix(".jsonl"), "".join(json.dumps(line) + "\n" for line in lines))
