"""Entry 009 of LOG.md: does a router whose choice is hard learn, and what is it that makes a hash so good?

    python experiments/009_routing.py run       what is not done yet
    python experiments/009_routing.py table     means over seeds, and differences from Switch paired by seed

The models, the text and the recipe of 007_experts.py, whose functions are used; every case at the same active FLOPs.
"""

import argparse
import importlib.util
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import torch

from groundup.config import to_dict
from groundup.model import Balance, HashRouter, MLPConfig, MoEConfig, ReinforceRouter, StraightThroughRouter, TopKRouter

RESULTS = Path(__file__).with_suffix(".jsonl")
_spec = importlib.util.spec_from_file_location("experts", Path(__file__).with_name("007_experts.py"))
assert _spec is not None and _spec.loader is not None
experts = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(experts)

ONE = replace(experts.SWITCH, balance=Balance(load=0.01))
TWO = experts.COARSE


def routed(router, base: MoEConfig = ONE) -> MoEConfig:
    return replace(base, router=router)


CASES = {
    "softmax, top 1 (Switch)": ONE,
    "softmax, top 2, renormalised": TWO,
    "hash": experts.CASES["flops"]["8 experts, hash"],
    "dense": experts.DENSE,
    "straight-through": routed(StraightThroughRouter()),
    "REINFORCE, greedy": routed(ReinforceRouter("greedy")),
    "sigmoid, top 2, renormalised, bias": experts.biased(routed(TopKRouter("sigmoid"), TWO)),
    "32, top 8": experts.FINE,
    "softmax, top 1, gate 1": routed(TopKRouter()),
    "REINFORCE, mean": routed(ReinforceRouter("mean")),
    "straight-through, Gumbel": routed(StraightThroughRouter(gumbel=True)),
    "REINFORCE, no baseline": routed(ReinforceRouter("none")),
}
FURTHER = {
    "softmax, top 1, gates times 8": routed(TopKRouter(renormalise=False, scale=8.0)),
    "straight-through, top 2": routed(StraightThroughRouter(), TWO),
    "hash, top 2": routed(HashRouter(), replace(TWO, balance=Balance())),
    "REINFORCE, greedy, discount 1": routed(ReinforceRouter("greedy", 1.0)),
    "28, top 4, and 4 shared": experts.CASES["grain"]["28, top 4, and 4 shared"],
}
"""Run last, for seed 0 unless more are asked for."""


def known(case: str, seed: int, ffn: MLPConfig | MoEConfig) -> dict | None:
    """A row of 007 for the same layer and seed: runs are the same to the last digit."""
    rows = (json.loads(line) for line in experts.RESULTS.read_text().splitlines())
    same = (row for row in rows if row["seed"] == seed and row.get("config") == json.loads(json.dumps(to_dict(ffn))))
    return next(({**row, "case": case, "sweep": "007: " + row["case"]} for row in same), None)


def run(seeds: list[int]) -> None:
    done = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    keys = {(row["case"], row["seed"]) for row in done}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        text = experts.Text(Path(folder))
        jobs = [(seed, *case) for seed in seeds for case in CASES.items()]
        for seed, case, ffn in jobs + [(seeds[0], *case) for case in FURTHER.items()]:
            if (case, seed) in keys:
                continue
            torch.manual_seed(seed)  # what is sampled in training
            found = known(case, seed, ffn) or experts.compare(text, ffn, seed) | {"config": to_dict(ffn)}
            row = {"case": case, "seed": seed, **found}
            with RESULTS.open("a") as out:
                out.write(json.dumps(row) + "\n")
            print(case, seed, f"{row['nats']:.4f}", row["max_over_mean"], flush=True)


def spread(values: list[float]) -> str:
    return f"{stdev(values):.3f}" if len(values) > 1 else "(one seed)"


def table() -> None:
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    nats = {(row["case"], row["seed"]): row["nats"] for row in rows}
    first = next(iter(CASES))
    for case in CASES | FURTHER:
        mine = [row for row in rows if row["case"] == case]
        if not mine:
            continue
        scores = [row["nats"] for row in mine]
        differences = [row["nats"] - nats[first, row["seed"]] for row in mine]
        loads = [mean(load) for load in zip(*(row["max_over_mean"] for row in mine), strict=True)]
        print(
            f"{case:36} {mine[0]['total']:7,} {mine[0]['flops']:9,.0f}  {mean(scores):.3f} +- {spread(scores)}"
            f"  {mean(differences):+.3f} +- {spread(differences)}  load {' '.join(f'{x:.2f}' for x in loads)}"
            f"  training {mean(row['training_nats'] for row in mine):.3f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    run(args.seeds) if args.what == "run" else table()
