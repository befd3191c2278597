"""`groundup bench train-step`: pretraining tokens per second, beside Hugging Face's Llama and litgpt.

Same shape, batch, optimizer (AdamW) and clipping on every side. In one heat per program its settings take turns;
then groundup and each peer, in its best setting, take turns for `--seconds`. groundup takes part in bf16, too, which is
the peers' precision, where it is faster in another.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from groundup.bench.race import Contest, Entry, Program, Setting, fastest
from groundup.bench.record import Record, checkout, load_average, print_table, save

OURS, SAME = "groundup", "bf16 + compile"
COLUMNS = {
    "program": "program",
    "setting": "setting",
    "heat": "tokens/s, heat",
    "final": "tokens/s, final",
    "spread": "IQR",
    "gflops": "GFLOP/s",
    "peak_gb": "peak GB",
    "note": "",
}


@dataclass(frozen=True)
class Shape:
    """A Llama: every head has its own keys and values, embeddings are not tied."""

    d_model: int
    num_layers: int
    num_heads: int
    d_ff: int  # 8/3 d_model, rounded up to a multiple of 32
    vocab_size: int = 8192
    batch_size: int = 16
    context_length: int = 256

    @property
    def batch_tokens(self) -> int:
        return self.batch_size * self.context_length


# "build" and "build-3m" are what ten minutes on two CPU cores train (the plan is a close race), without the QK-norm
# that Llama does not have.
SHAPES = {
    "S": Shape(d_model=320, num_layers=6, num_heads=5, d_ff=864),  # 12.7 M parameters
    "build": Shape(d_model=256, num_layers=4, num_heads=4, d_ff=704, vocab_size=4096),  # 5.3 M
    "build-3m": Shape(d_model=192, num_layers=4, num_heads=3, d_ff=512, vocab_size=4096),  # 3.3 M
    "M": Shape(d_model=512, num_layers=8, num_heads=8, d_ff=1376),  # 33.7 M parameters
}


def settings() -> list[Setting]:
    """Everything that is tried. A peer's settings are those that its own recipes offer."""
    fp32 = {"precision": "fp32", "compile": False}
    bf16 = {"precision": "bf16", "compile": False}
    compiled = {"precision": "bf16", "compile": True}
    sdpa, eager = {"attention": "sdpa"}, {"attention": "eager"}
    chunked, whole = {"loss_chunk": 128}, {"loss_chunk": 0}
    return [
        Setting(OURS, "fp32", fp32),
        Setting(OURS, "bf16", bf16),
        Setting(OURS, SAME, compiled),
        Setting(OURS, "int8 + compile", {"precision": "int8", "compile": True}),
        Setting("Hugging Face", "fp32", fp32 | sdpa),
        Setting("Hugging Face", "autocast bf16", bf16 | sdpa),
        Setting("Hugging Face", "autocast bf16 + compile", compiled | sdpa),
        Setting("Hugging Face", "autocast bf16 + compile, eager attention", compiled | eager),
        Setting("litgpt", "fp32", fp32 | chunked),
        Setting("litgpt", "autocast bf16", bf16 | chunked),
        Setting("litgpt", "autocast bf16 + compile", compiled | whole),
    ]


def programs() -> dict[str, Program]:
    root = checkout()
    peers = root / "benchmarks" / "peers" if root else None
    return {
        OURS: Program(Path(__file__).with_name("train_step_program.py"), "groundup"),
        "Hugging Face": Program(peers and peers / "train_step_huggingface.py", "transformers"),
        "litgpt": Program(peers and peers / "train_step_litgpt.py", "litgpt"),
    }


def heats(contest: Contest) -> list[Entry]:
    """Each program's settings against each other. groundup is first, and its device is everyone's."""
    entries: list[Entry] = []
    for program in contest.programs:
        heat = contest.race([setting for setting in settings() if setting.program == program])
        for entry in heat:
            print(f"  {entry.setting.title}: {_outcome(entry, contest.options['shape'])}", flush=True)
        entries += heat
        if program == OURS and (best := fastest(heat)):
            contest.options["device"] = best.facts["device"]
    return entries


def finalists(tried: Sequence[Entry], names: Sequence[str]) -> list[Setting]:
    """The fastest setting of each program, and ours in the peers' precision."""
    best = [fastest([e for e in tried if e.setting.program == program]) for program in names]
    same = [e for e in tried if (e.setting.program, e.setting.name) == (OURS, SAME) and e.rates and e not in best]
    return [entry.setting for entry in (*best, *same) if entry]


def table(tried: Sequence[Entry], final: Sequence[Entry], tokens: int, flops: float) -> list[dict[str, Any]]:
    """One row per setting. tokens: in a step; flops: per token."""
    finals = {entry.setting.title: entry for entry in final}
    rows = []
    for heat in tried:
        last = finals.get(heat.setting.title)
        shown = (last and last.rates) or heat.rates
        rows.append(
            {
                "program": heat.setting.program,
                "setting": heat.setting.name,
                "heat": heat.rates and heat.rates.median * tokens,
                "final": last and last.rates and last.rates.median * tokens,
                "spread": shown and shown.spread * tokens,
                "gflops": shown and shown.median * tokens * flops / 1e9,
                "peak_gb": heat.peak_bytes and heat.peak_bytes / 1e9,
                "note": heat.failure or (last and last.failure) or "",
            }
        )
    return rows


def compare(size: str, shape: Shape, tried: Sequence[Entry], final: Sequence[Entry]) -> Record:
    """The record of a final: ours against whichever peer was fastest in it."""
    ours = fastest([entry for entry in final if entry.setting.program == OURS])
    assert ours is not None and ours.rates is not None
    peer = fastest([entry for entry in final if entry.setting.program != OURS])
    same = next((e.rates for e in final if e.rates and (e.setting.program, e.setting.name) == (OURS, SAME)), None)
    speeds = {e.setting.title: [rate * shape.batch_tokens for rate in e.rates.values] for e in final if e.rates}
    facts = ours.facts
    return Record(
        name="train-step",
        ours=ours.rates.median * shape.batch_tokens,
        peer=peer.rates.median * shape.batch_tokens if peer and peer.rates else None,
        peer_name=peer.setting.title if peer else None,
        ratio=ours.rates.median / peer.rates.median if peer and peer.rates else None,
        unit="tokens/s",
        device=facts["environment"]["device"],
        rows=table(tried, final, shape.batch_tokens, facts["flops_per_token"]),
        details={
            "size": size,
            "shape": asdict(shape),
            "ours_name": ours.setting.title,
            "ratio_in_bf16": same.median / peer.rates.median if same and peer and peer.rates else None,
            "parameters": {e.setting.program: e.facts["parameters"] for e in final if e.facts},
            "threads": {e.setting.program: e.facts["threads"] for e in final if e.facts},
            "flops_per_token": facts["flops_per_token"],
            "measured": speeds,
        },
        versions={k: v for e in final for k, v in e.facts.get("versions", {}).items()},
        environment=facts["environment"],
    )


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="groundup bench train-step", description=main.__doc__)
    parser.add_argument("--size", choices=list(SHAPES), default="S")
    parser.add_argument("--seconds", type=float, default=90.0, help="length of the final (default 90)")
    parser.add_argument("--turn-seconds", type=float, default=3.0, help="length of one program's turn (default 3)")
    parser.add_argument("--device", help="cpu or cuda (default: the fastest here)")
    parser.add_argument("--warmup-steps", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/train-step-SIZE.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str] = ()) -> int:
    """Pretraining tokens per second, beside Hugging Face's Llama and litgpt, in their best settings."""
    options = _arguments(argv)
    shape = SHAPES[options.size]
    common = {"shape": asdict(shape), "device": options.device, "warmup_steps": options.warmup_steps}
    contest = Contest(programs(), common, options.turn_seconds)
    load_before = load_average()
    tried = heats(contest)
    final = contest.race(finalists(tried, list(contest.programs)), options.seconds)
    if not any(entry.setting.program == OURS and entry.rates for entry in final):
        print("groundup bench train-step: no setting of groundup ran", file=sys.stderr)
        return 1
    record = compare(options.size, shape, tried, final)
    record.load_average = {"before": load_before, "after": load_average()}
    print_table(f"train-step {options.size} on {record.device}", record.rows, COLUMNS)
    if options.save:
        suffix = "" if common["device"] == "cpu" else f"-{common['device']}"
        print(f"saved {save(record, f'train-step-{options.size}{suffix}')}")
    print(record.line(), flush=True)
    return 0


def _outcome(entry: Entry, shape: dict[str, int]) -> str:
    if entry.rates is None:
        return entry.failure or "did not run"
    rate = entry.rates.median * shape["batch_size"] * shape["context_length"]
    return f"{rate:,.0f} tokens/s, peak {(entry.peak_bytes or 0) / 1e9:.2f} GB"
