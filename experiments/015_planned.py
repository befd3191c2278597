"""Entry 015: does the planner's first choice beat its runners-up, when all are really run?

    python experiments/015_planned.py [TEXT ...] [--budget 10m] [--seed N] [--first RUN]

builds what the planner chooses for the budget (or takes a finished build of it), then, with the same budget, the shapes
that its plan.json names as runners-up.
Every result goes to 015_planned.jsonl beside this file: a line per build, appended, so that seeds and texts
add up. Takes three budgets; use the machine for nothing else meanwhile.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_suffix(".jsonl")
KEPT = ("bits_per_byte", "baselines", "parameters", "tokens", "seconds", "predicted", "measured")


def build(options: argparse.Namespace, folder: Path, *settings: str) -> dict[str, Any]:
    """One build in a process of its own, as a user starts it; its result."""
    command = [sys.executable, "-m", "groundup.cli", "build", *options.text, *settings]
    command += ["--budget", options.budget, "--seed", str(options.seed), "--out", str(folder)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return json.loads((folder / "result.json").read_text("utf-8"))


def record(options: argparse.Namespace, folder: Path, rank: int, result: dict[str, Any]) -> None:
    planned = json.loads((folder / "plan.json").read_text("utf-8"))["plan"]
    line = {
        "rank": rank, "text": [Path(name).name for name in options.text] or "bundled", "budget": options.budget,
        "seed": options.seed, "d_model": planned["model"]["d_model"], "num_layers": planned["model"]["num_layers"],
        "environment": json.loads((folder / "env.json").read_text("utf-8")), **{key: result.get(key) for key in KEPT},
    }  # fmt: skip
    with open(OUT, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{rank}: {line['num_layers']} x {line['d_model']}: {result['bits_per_byte']:.4f} bits per byte", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="*")
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=Path, help="a finished build of the same text, budget and seed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        first = options.first or Path(scratch, "first")
        done = json.loads((first / "result.json").read_text("utf-8")) if options.first else build(options, first)
        record(options, first, 1, done)
        others = json.loads((first / "plan.json").read_text("utf-8"))["runners_up"]
        for rank, other in enumerate(others, start=2):
            folder = Path(scratch, str(rank))
            shape = f"d_model={other['d_model']}", f"num_layers={other['num_layers']}"
            record(options, folder, rank, build(options, folder, *shape))


if __name__ == "__main__":
    main()
