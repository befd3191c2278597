"""Entry 042 of LOG.md: what does training with int8 products cost in loss, against bf16 and fp32?

    OMP_NUM_THREADS=1 python experiments/042_int8.py FOLDER

Entry 016's comparison, with the same text, on two models: "small" is that of 016 itself, "build" is the size that ten
minutes on two CPU cores train. Appends a line per run to 042_int8.jsonl; runs that it already has are not repeated.
"""

import importlib.util
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from groundup import data, evaluation, optim, presets
from groundup.device import environment
from groundup.model import Transformer
from groundup.train import next_token, precision, train

OUT = Path(__file__).with_suffix(".jsonl")
PRECISIONS = ("fp32", "bf16", "int8")
SEEDS, LAST = 3, 50
# layers, width, heads, rows, context, steps, rate
SIZES = {"small": (4, 128, 4, 4, 64, 1000, 2e-3), "build": (4, 256, 4, 8, 128, 600, 2e-3)}


def entry_016() -> Any:
    spec = importlib.util.spec_from_file_location("entry_016", OUT.with_name("016_precision.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
            if not mine:
                continue
            cells = [size, name]
            for key in ("loss", "held_out"):
                gaps = [r[key] - base[r["seed"]][key] for r in mine]
                spread = f" +- {statistics.stdev(gaps):.4f}" if len(gaps) > 1 else ""
                cells += [f"{statistics.fmean(r[key] for r in mine):.4f}", f"{statistics.fmean(gaps):+.4f}{spread}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(folder: Path) -> None:
    kept = [json.loads(line) for line in OUT.read_text("utf-8").splitlines()] if OUT.exists() else []
    runs = [line for line in kept if "precision" in line]
    tokenizer, held_out = entry_016().prepare(folder)
    if not kept:
        append({"environment": environment(), "sizes": SIZES})
    for size in SIZES:
        for seed in range(SEEDS):
            for name in PRECISIONS:
                if not any((r["size"], r["precision"], r["seed"]) == (size, name, seed) for r in runs):
                    runs.append(run(folder, size, name, seed, tokenizer, held_out))
                    append(runs[-1])
                    print({k: v for k, v in runs[-1].items() if k != "losses"}, file=sys.stderr, flush=True)
    print(table(runs))


def append(line: dict[str, Any]) -> None:
    with open(OUT, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
