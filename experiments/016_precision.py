"""Entry 016 of LOG.md: what does training in 16 and 8 bits cost in loss against fp32?

    OMP_NUM_THREADS=1 python experiments/016_precision.py FOLDER

trains one small model in every precision from the same weights on the same batches, three seeds each, and appends a
line per run to 016_precision.jsonl beside this file; runs that it already has are not repeated. "fp32, halves" is fp32
with two micro-batches: mathematically the same run, rounded differently, so its gap is what any has to be held against.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from groundup import bundled, data, evaluation, optim, presets
from groundup.corpus import read_documents, split_held_out
from groundup.device import environment
from groundup.model import Transformer
from groundup.tokenizer import Tokenizer
from groundup.train import next_token, precision, train

OUT = Path(__file__).with_suffix(".jsonl")
PRECISIONS = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp16", "fp8": "fp8", "mxfp8": "mxfp8", "fp32, halves": "fp32"}
SEEDS, STEPS, LAST = 3, 1000, 50
VOCAB, ROWS, CONTEXT, RATE = 512, 4, 64, 2e-3
TEXT_BYTES, SCORED_BYTES = 2_000_000, 60_000
CONFIG = presets.llama(vocab_size=VOCAB, d_model=128, num_layers=4, num_heads=4, context_length=CONTEXT)


def prepare(folder: Path) -> tuple[Tokenizer, list[str]]:
    """The tokenizer and the held-out texts; token shards go to the folder."""
    split = split_held_out(list(read_documents([bundled.path()])), 0.05)
    texts = [document.text for document in split.train]
    kept = texts[: next(n for n in range(len(texts) + 1) if sum(map(len, texts[:n])) >= TEXT_BYTES)]
    tokenizer = Tokenizer.train_from_iterator(kept, VOCAB, ["<|endoftext|>"])
    data.write_shards(kept, tokenizer, folder / "shards", overwrite=True)
    held_out = "\n".join(document.text for document in split.held_out)[:SCORED_BYTES]
    return tokenizer, [held_out]


def run(folder: Path, name: str, seed: int, tokenizer: Tokenizer, held_out: list[str]) -> dict[str, Any]:
    model = Transformer(CONFIG)
    model.init_weights(seed)
    precision.apply(model, PRECISIONS[name])
    loader = data.Loader(folder / "shards", ROWS, CONTEXT, seed=seed, document_masks=False)
    begun = time.perf_counter()
    done = train(
        model, loader, next_token, optim.AdamW(model, RATE), STEPS, schedule=optim.warmup_stable_decay(50, STEPS),
        micro_batches=2 if name.endswith("halves") else 1, progress=False,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    own = evaluation.bits_per_byte(model, tokenizer, held_out)
    precision.apply(model, "fp32")  # the weights alone, whatever they were trained in
    scored = evaluation.bits_per_byte(model, tokenizer, held_out)
    return {
        "precision": name, "seed": seed, "loss": statistics.fmean(done.losses[-LAST:]),
        "held_out": scored.nats_per_token, "held_out_in_16_bits": own.nats_per_token, "overflows": done.overflows,
        "skipped": done.skipped, "seconds": round(seconds, 1), "losses": [round(x, 5) for x in done.losses[9::10]],
    }  # fmt: skip


def cells(mine: list[dict[str, Any]], base: dict[int, dict[str, Any]]) -> str:
    """Mean and gap of both losses; base: the runs to compare with, by seed."""
    found = []
    for key in ("loss", "held_out"):
        gaps = [r[key] - base[r["seed"]][key] for r in mine]
        spread = f" +- {statistics.stdev(gaps):.4f}" if len(gaps) > 1 else ""
        found += [f"{statistics.fmean(r[key] for r in mine):.4f}", f"{statistics.fmean(gaps):+.4f}{spread}"]
    return " | ".join(found)


def table(runs: list[dict[str, Any]]) -> str:
    """Gaps are differences to fp32 from the same seed; the number after +- is their standard deviation over seeds."""
    base = {r["seed"]: r for r in runs if r["precision"] == "fp32"}
    lines = ["| precision | last 50 steps | gap | held-out | gap | overflows |", "|---|---|---|---|---|---|"]
    for name in PRECISIONS:
        mine = [r for r in runs if r["precision"] == name and r["seed"] in base]
        if not mine:
            continue
        lines.append(f"| {name} | {cells(mine, base)} | {max(r['overflows'] for r in mine)} |")
    values = [r["loss"] for r in base.values()]
    if len(values) > 1:
        lines.append(f"\nfp32 over seeds: {statistics.stdev(values):.4f}")
    return "\n".join(lines)


def main(folder: Path) -> None:
    kept = lines_of(OUT)
    runs = [line for line in kept if "precision" in line]
    tokenizer, held_out = prepare(folder)
    if not kept:
        append(OUT, {"environment": environment(), "steps": STEPS, "rows": ROWS, "context": CONTEXT, "rate": RATE})
    for seed in range(SEEDS):
        for name in PRECISIONS:
            if any((r["precision"], r["seed"]) == (name, seed) for r in runs):
                continue
            runs.append(run(folder, name, seed, tokenizer, held_out))
            append(OUT, runs[-1])
            print({k: v for k, v in runs[-1].items() if k != "losses"}, file=sys.stderr, flush=True)
    print(table(runs))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def append(path: Path, line: dict[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
