"""Entry 046 of LOG.md: what does the weights' gradient in int8, too, cost in loss?

    OMP_NUM_THREADS=1 python experiments/046_int8_weights.py FOLDER

Entry 042's comparison, its models, text and seeds; there "int8" still had that gradient in bf16. Then the larger model
with a build's optimizer, as Muon makes all directions of a gradient equally long, noise too. Appends a line per run to
046_int8_weights.jsonl; runs that either file has already are not repeated.
"""

import importlib
import sys
from pathlib import Path

from groundup import optim
from groundup.accounting.plan import ADAM_RATE, MUON_RATE, WEIGHT_DECAY
from groundup.build.pretrain import VECTOR_RATE
from groundup.device import environment
from groundup.model import Transformer
from groundup.optim.groups import split_for_muon

sys.path.insert(0, str(Path(__file__).resolve().parent))

entry_016, entry_042 = (importlib.import_module(name) for name in ("016_precision", "042_int8"))

OUT = Path(__file__).with_suffix(".jsonl")
BEFORE, NOW, MUON = "int8, dW in bf16", "int8", "build, Muon"
RUNS = {"small": ("fp32", "bf16", NOW), "build": ("fp32", "bf16", NOW), MUON: ("bf16", NOW)}


def muon(model: Transformer, rate: float) -> optim.Optimizers:
    """A build's (`build.pretrain.make_optimizer`), at its own rates."""
    matrices, rest = split_for_muon(model)
    tables, vectors = ([p for _, p in rest if (p.ndim > 1) == wide] for wide in (True, False))
    groups = [{"params": tables}, {"params": vectors, "lr": VECTOR_RATE}]
    adamw = optim.AdamW(groups, lr=ADAM_RATE, eps=1e-10, weight_decay=0.0)
    return optim.Optimizers([optim.Muon(matrices, MUON_RATE, weight_decay=WEIGHT_DECAY), adamw])


def main(folder: Path) -> None:
    runs = [line for line in entry_016.lines_of(entry_042.OUT) if "precision" in line]
    for line in runs:
        line["precision"] = BEFORE if line["precision"] == "int8" else line["precision"]
    if not OUT.exists():
        entry_016.append(OUT, {"environment": environment()})
    runs += [line for line in entry_016.lines_of(OUT) if "precision" in line]
    tokenizer, held_out = entry_016.prepare(folder)
    entry_042.SIZES[MUON] = entry_042.SIZES["build"]
    for seed in range(entry_042.SEEDS):
        for size, names in RUNS.items():
            for name in names:
                if not any((r["size"], r["precision"], r["seed"]) == (size, name, seed) for r in runs):
                    optimizer = muon if size == MUON else entry_042.adamw
                    runs.append(entry_042.run(folder, size, name, seed, tokenizer, held_out, optimizer))
                    entry_016.append(OUT, runs[-1])
                    print({k: v for k, v in runs[-1].items() if k != "losses"}, file=sys.stderr, flush=True)
    vars(entry_042)["PRECISIONS"] = ("fp32", "bf16", BEFORE, NOW)
    print(entry_042.table(runs))
    base = {r["seed"]: r for r in runs if (r["size"], r["precision"]) == (MUON, "bf16")}
    for name in RUNS[MUON]:
        mine = [r for r in runs if (r["size"], r["precision"]) == (MUON, name) and r["seed"] in base]
        print(f"| {MUON}, gaps to bf16 | {name} | {entry_016.cells(mine, base)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
