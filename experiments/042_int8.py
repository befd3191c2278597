"""Entry 042 of LOG.md: what does training with int8 products cost in loss, against bf16 and fp32?

    OMP_NUM_THREADS=1 python experiments/042_int8.py FOLDER

Entry 016's comparison, with the same text, on two models: "small" is that of 016 itself, "build" is the size that ten
minutes on two CPU cores train. Appends a line per run to 042_int8.jsonl; runs that it already has are not repeated.
"""

import importlib
import statistics
import sys
from pathlib import Path
from typing import Any

from groundup import data, evaluation, optim, presets
from groundup.device import environment
from groundup.model import Transformer
from groundup.train import next_token, precision, train

sys.path.insert(0, str(Path(__file__).resolve().parent))

entry_016 = importlib.import_module("016_precision")

OUT = Path(__file__).with_suffix(".jsonl")
PRECISIONS = ("fp32", "bf16", "int8")
SEEDS, LAST = 3, 50
# layers, width, heads, rows, context, steps, rate
SIZES = {"small": (4, 128, 4, 4, 64, 1000, 2e-3), "build": (4, 256, 4, 8, 128, 600, 2e-3)}


def adamw(model: Transformer, rate: float) -> optim.AdamW:
    return optim.AdamW(model, rate)


def run(
    folder: Path, size: str, name: str, seed: int, tokenizer: Any, held_out: list[str], optimizer: Any = adamw
) -> dict[str, Any]:
    layers, width, heads, rows, context, steps, rate = SIZES[size]
    model = Transformer(
        presets.llama(
            vocab_size=tokenizer.vocab_size, d_model=width, num_layers=layers, num_heads=heads, context_length=context
        )
    )
    model.init_weights(seed)
    precision.apply(model, name)
    loader = data.Loader(folder / "shards", rows, context, seed=seed, document_masks=False)
    done = train(
        model, loader, next_token, optimizer(model, rate), steps, schedule=optim.warmup_stable_decay(50, steps),
        progress=False,
    )  # fmt: skip
    precision.apply(model, "fp32")  # the weights alone, whatever they were trained in
    scored = evaluation.bits_per_byte(model, tokenizer, held_out)
    return {
        "size": size, "precision": name, "seed": seed, "loss": statistics.fmean(done.losses[-LAST:]),
        "held_out": scored.nats_per_token, "skipped": done.skipped, "losses": [round(x, 5) for x in done.losses[9::10]],
    }  # fmt: skip


def table(runs: list[dict[str, Any]]) -> str:
    """Gaps are differences to fp32 from the same seed; the number after +- is their standard deviation over seeds."""
    lines = ["| model | precision | last 50 steps | gap | held-out | gap |", "|---|---|---|---|---|---|"]
    for size in SIZES:
        base = {r["seed"]: r for r in runs if (r["size"], r["precision"]) == (size, "fp32")}
        for name in PRECISIONS:
            mine = [r for r in runs if (r["size"], r["precision"]) == (size, name) and r["seed"] in base]
            if mine:
                lines.append(f"| {size} | {name} | {entry_016.cells(mine, base)} |")
    return "\n".join(lines)


def main(folder: Path) -> None:
    kept = entry_016.lines_of(OUT)
    runs = [line for line in kept if "precision" in line]
    tokenizer, held_out = entry_016.prepare(folder)
    if not kept:
        entry_016.append(OUT, {"environment": environment(), "sizes": SIZES})
    for size in SIZES:
        for seed in range(SEEDS):
            for name in PRECISIONS:
                if not any((r["size"], r["precision"], r["seed"]) == (size, name, seed) for r in runs):
                    runs.append(run(folder, size, name, seed, tokenizer, held_out))
                    entry_016.append(OUT, runs[-1])
                    print({k: v for k, v in runs[-1].items() if k != "losses"}, file=sys.stderr, flush=True)
    print(table(runs))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
