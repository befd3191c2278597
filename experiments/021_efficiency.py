"""Entry 021: what share of the matmul rate does a training step of `groundup build` reach, by its width?

    python experiments/021_efficiency.py

times the step that a build trains with (bf16, Muon, compiled blocks) for the shapes of the planner's ladder, in two
rounds, and writes a line for each to 021_efficiency.jsonl beside this file. `accounting/plan.py:EFFICIENCY` is from it.
Takes about five minutes; use the machine for nothing else meanwhile.
"""

import json
import statistics
import sys
from pathlib import Path

import torch

from groundup.accounting.flops import training_flops_per_token
from groundup.accounting.hardware import probe
from groundup.accounting.plan import model_config
from groundup.device import environment, release_memory
from groundup.files import write_atomic
from groundup.profiling.prediction import StepSettings, perform

OUT = Path(__file__).with_suffix(".jsonl")
SHAPES = ((64, 2), (128, 2), (128, 4), (192, 4), (256, 4), (256, 6), (320, 6), (384, 6), (512, 8))
ROUNDS, VOCAB, CONTEXT, BATCH = 2, 4096, 256, 16


def main() -> None:
    device = torch.device("cpu")
    machine = probe(device, 3.0)
    torch.set_num_threads(machine.threads)
    settings = StepSettings(BATCH, CONTEXT, machine.precision, "muon_adamw", compiled=True)
    seconds: dict[tuple[int, int], list[float]] = {shape: [] for shape in SHAPES}
    for _ in range(ROUNDS):
        for d_model, layers in SHAPES:
            done = perform(model_config(d_model, layers, VOCAB, CONTEXT), settings, device)
            seconds[d_model, layers].append(done.seconds)
            release_memory()
    lines = [{"environment": environment(), "peak_flops": machine.peak_flops, "precision": machine.precision}]
    print("| layers x width | ms, each round | share of the matmul rate |\n|---|---|---|")
    for (d_model, layers), values in seconds.items():
        flops = BATCH * CONTEXT * training_flops_per_token(model_config(d_model, layers, VOCAB, CONTEXT), CONTEXT)
        shares = [flops / value / machine.peak_flops for value in values]
        lines.append({"d_model": d_model, "num_layers": layers, "seconds": values, "shares": shares})
        print(
            f"| {layers} x {d_model} | {', '.join(f'{1e3 * v:.0f}' for v in values)} | {statistics.mean(shares):.3f} |"
        )
        sys.stdout.flush()
    write_atomic(OUT, "".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
