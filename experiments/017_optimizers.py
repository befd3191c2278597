"""Entry 017: every optimizer of `optim/` at one small size, each at a rate of its own; and weight decay with the rate.

    OMP_NUM_THREADS=1 python experiments/017_optimizers.py FOLDER [SECONDS]

A rate is chosen by one seed on a validation text, from a grid that grows while its end is the best; then three other
seeds are trained at that rate and scored on the held-out text. Goes on where it was stopped (FOLDER/runs.jsonl); with
SECONDS it stops by itself after the run in which they end. Writes the runs that there are to 017_optimizers.jsonl
beside this file, with the time of an update of each optimizer. About twenty minutes of one core.
"""

import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from groundup import bundled, optim, train
from groundup.config import to_dict
from groundup.device import environment, set_seed
from groundup.evaluation import bits_per_byte
from groundup.files import write_atomic, write_json
from groundup.scaling import AblationSettings, modern
from groundup.scaling.ablation import _prepare, load
from groundup.scaling.one_run import Material, loss_on, make_loader, make_model
from groundup.train import Guard, objectives

SIZES = AblationSettings(
    d_model=128, num_layers=4, context_length=128, batch_size=4, vocab_size=1024, precision="bf16",
    text_bytes=3_000_000, scored_bytes=60_000,
)  # fmt: skip
STEPS, SEEDS, CHOOSING_SEED = 400, (0, 1, 2), 1000
ADAMW_SHARE = 0.15

GRIDS = {
    "sgd": (0.3, 1.0, 3.0),
    "momentum": (0.03, 0.1, 0.3),
    "adagrad": (0.01, 0.03, 0.1),
    "rmsprop": (0.001, 0.003, 0.01),
    "adamw": (0.003, 0.01, 0.03),
    "lion": (0.0003, 0.001, 0.003),
    "adafactor": (0.03, 0.1, 0.3),
    "muon_adamw": (0.01, 0.02, 0.04),
    "soap": (0.003, 0.01, 0.03),
}
MORE_RATES = 2
DECAYS = (0.0, 0.3)


def make(name: str, model: torch.nn.Module, rate: float, decay: float) -> Any:
    options: dict[str, Any] = {"lr": rate, "weight_decay": decay}
    if name == "muon_adamw":
        options |= {"lr": ADAMW_SHARE * rate, "muon_lr": rate}
    if name == "soap":
        options["max_side"] = 512  # the vocabulary's side has no basis
    return optim.make_optimizer(name, model, **options)


def train_once(material: Material, name: str, rate: float, seed: int, decay: float, *, final: bool) -> dict[str, Any]:
    """One run, scored on the held-out text (final) or on the validation text."""
    set_seed(seed)
    model = make_model(modern(SIZES), SIZES, seed, material.device)
    start = loss_on(model, next(iter(make_loader(material, SIZES, seed))))
    optimizer = make(name, model, rate, decay)
    bits, fault, seconds = None, None, None
    began = time.monotonic()
    try:
        run = train.train(
            model, make_loader(material, SIZES, seed), objectives.pretraining(model), optimizer, STEPS,
            schedule=optim.cosine(STEPS // 10, STEPS, final=0.1), guard=Guard(max_in_row=0, sigma=None), progress=False,
        )  # fmt: skip
        if run.stopped_by == "interrupt":
            raise KeyboardInterrupt
        seconds = statistics.median(run.step_seconds)
        if not statistics.fmean(run.losses[-8:]) < start:
            fault = "the loss is not below that before training"
    except FloatingPointError as error:
        fault = str(error).splitlines()[0]
    if fault is None:
        texts = material.held_out if final else material.validation
        bits = bits_per_byte(model, material.tokenizer, texts).bits_per_byte
    members = getattr(optimizer, "optimizers", [optimizer])
    state = sum(t.nbytes for o in members for states in o.state.values() for t in states.values())
    return {
        "optimizer": name, "rate": rate, "decay": decay, "seed": seed, "final": final, "fault": fault,
        "bits_per_byte": bits if bits is not None and math.isfinite(bits) else None,
        "step_seconds": seconds, "state_bytes": state, "seconds": round(time.monotonic() - began, 2),
    }  # fmt: skip


class Runs:
    """Lines of runs.jsonl; each run is trained once."""

    def __init__(self, folder: Path, seconds: float):
        self.until = time.monotonic() + seconds
        self.path = folder / "runs.jsonl"
        self.material = load(folder, torch.device("cpu"))[2]
        self.done = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def get(self, name: str, rate: float, seed: int, decay: float = 0.0, *, final: bool) -> dict[str, Any]:
        key = {"optimizer": name, "rate": rate, "seed": seed, "decay": decay, "final": final}
        for run in self.done:
            if key.items() <= run.items():
                return run
        if time.monotonic() > self.until:
            sys.exit(3)
        run = train_once(self.material, name, rate, seed, decay, final=final)
        self.done.append(run)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(run, allow_nan=False) + "\n")
        print(run, file=sys.stderr, flush=True)
        return run

    def best_rate(self, name: str) -> float:
        """The grid's best by validation bits, after growing it by its own ratio while an end is the best."""
        rates = list(GRIDS[name])
        for _ in range(MORE_RATES + 1):
            scores = {rate: self.get(name, rate, CHOOSING_SEED, final=False)["bits_per_byte"] for rate in rates}
            whole = {rate: bits for rate, bits in scores.items() if bits is not None}
            best = min(whole, key=whole.__getitem__)
            if best == max(rates):
                rates.append(float(f"{best * rates[1] / rates[0]:.1g}"))
            elif best == min(rates):
                rates.insert(0, float(f"{best * rates[0] / rates[1]:.1g}"))
            else:
                break
        return best


def update_seconds() -> dict[str, float]:
    """The fastest of many updates of each optimizer, in turns; SOAP's mean over one period of its renewals."""
    models = {name: make_model(modern(SIZES), SIZES, 0, torch.device("cpu")) for name in GRIDS}
    optimizers = {name: make(name, model, 1e-4, 0.0) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in GRIDS}
    for model in models.values():
        for p in model.parameters():
            p.grad = torch.randn_like(p)
    for _ in range(20):
        for name, optimizer in optimizers.items():
            began = time.perf_counter()
            for _ in range(10):
                optimizer.step()
            times[name].append((time.perf_counter() - began) / 10)
    return {name: min(values[1:]) for name, values in times.items()}


def main(folder: Path, seconds: float) -> None:
    if not (folder / "plan.json").exists():
        _prepare(folder, [bundled.path()], SIZES)
        write_json(folder / "plan.json", [])
        write_json(folder / "config.json", {"ablation": to_dict(SIZES)})
    runs = Runs(folder, seconds)
    try:
        train_all(runs)
    finally:
        lines = [{"environment": environment(), "steps": STEPS, "update_seconds": update_seconds()}, *runs.done]
        body = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        write_atomic(Path(__file__).with_suffix(".jsonl"), body)


def train_all(runs: Runs) -> None:
    best = {name: runs.best_rate(name) for name in GRIDS}
    for seed in SEEDS:
        for name, rate in best.items():
            runs.get(name, rate, seed, final=True)
    for factor in (1 / 3, 1.0, 3.0):
        for decay in DECAYS:
            for seed in SEEDS:
                runs.get("adamw", float(f"{best['adamw'] * factor:.2g}"), seed, decay, final=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else math.inf)
