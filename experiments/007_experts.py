"""Entry 007 of LOG.md: what do experts, their balance, their grain, upcycling and further tokens bring at a small size?

    python experiments/007_experts.py run [--only balance|flops|grain|upcycle|drops|further]     what is not done yet
    python experiments/007_experts.py table                                                      means over seeds

The bundled text, every model at the same FLOPs per token (`active` parameters), a fixed number of tokens, one thread.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import mean, stdev

import torch

from groundup import bundled, data
from groundup.accounting import count_parameters, training_flops_per_token
from groundup.config import to_dict
from groundup.corpus import read_documents, split_held_out
from groundup.model import (
    AttentionConfig,
    Balance,
    BlockConfig,
    ExpertChoiceRouter,
    HashRouter,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    MultiTokenConfig,
    TopKRouter,
    Transformer,
    acceptance_rate,
    upcycle,
)  # fmt: skip
from groundup.model.balance import routers
from groundup.optim import muon_adamw, warmup_stable_decay
from groundup.tokenizer import Tokenizer
from groundup.train import next_token, objectives, train

RESULTS = Path(__file__).with_suffix(".jsonl")
D_MODEL, LAYERS, D_FF, CONTEXT, ROWS, VOCAB = 64, 2, 192, 128, 16, 512
STEPS = 400
DENSE = MLPConfig(D_FF)
SWITCH = MoEConfig(8, 1, D_FF, router=TopKRouter(renormalise=False))
COARSE = MoEConfig(8, 2, D_FF // 2, balance=Balance(load=0.01))
FINE = MoEConfig(32, 8, D_FF // 8, balance=Balance(load=0.01))


def biased(moe: MoEConfig) -> MoEConfig:
    return replace(moe, router=replace(moe.router, bias_rate=0.01), balance=Balance())


CASES = {
    "balance": {
        "none": SWITCH,
        "auxiliary 0.01": replace(SWITCH, balance=Balance(load=0.01)),
        "auxiliary 0.1": replace(SWITCH, balance=Balance(load=0.1)),
        "loss-free bias": biased(SWITCH),
        "none, z-loss": replace(SWITCH, balance=Balance(z=0.001)),
        "none, top 2": replace(COARSE, balance=Balance()),
        "loss-free bias, top 2": biased(COARSE),
    },
    "flops": {
        "dense": DENSE,
        "8 experts, top 1": replace(SWITCH, balance=Balance(load=0.01)),
        "8 experts, top 2": COARSE,
        "8 experts, hash": MoEConfig(8, 1, D_FF, router=HashRouter()),
        "8 experts, expert choice": MoEConfig(8, 1, D_FF, router=ExpertChoiceRouter()),
    },
    "grain": {
        "8, top 2": COARSE,
        "32, top 8": FINE,
        "31, top 7, and 1 shared": replace(FINE, num_experts=31, top_k=7, num_shared=1),
        "28, top 4, and 4 shared": replace(FINE, num_experts=28, top_k=4, num_shared=4),
    },
}


def model_of(ffn: MLPConfig | MoEConfig, seed: int, **options) -> Transformer:
    block = BlockConfig(AttentionConfig(4, 4, 16), ffn)
    model = Transformer(ModelConfig(VOCAB, D_MODEL, LAYERS, (block,), CONTEXT, **options))
    model.init_weights(seed, residual="zero")
    return model


class Text:
    """The bundled text as shards: most of it to train on, a part that is only scored."""

    def __init__(self, folder: Path) -> None:
        parts = split_held_out(read_documents([bundled.path()]), 0.05)
        training = [document.text for document in parts.train]
        self.folder = folder
        self.tokenizer = Tokenizer.train_from_iterator(training[:40], VOCAB)
        data.write_shards(training[::4], self.tokenizer, folder / "train")
        data.write_shards([d.text for d in parts.held_out], self.tokenizer, folder / "held_out")
        self.scored = list(islice(data.Loader(folder / "held_out", ROWS, CONTEXT, seed=1), 24))

    def train(self, model: Transformer, seed: int, steps: int, objective=next_token) -> list[float]:
        source = data.Loader(self.folder / "train", ROWS, CONTEXT, seed=seed)
        optimizer = muon_adamw(model, lr=0.006, muon_lr=0.02)
        schedule = warmup_stable_decay(20, steps, 0.5)
        done = train(model, source, objective, optimizer, steps, schedule=schedule, progress=False)
        if done.stopped_by != "steps":  # a signal ends a run in good order; half a run is no result
            raise SystemExit(f"stopped by {done.stopped_by}")
        return done.losses

    @torch.no_grad()
    def score(self, model: Transformer) -> dict:
        """Nats per held-out token without auxiliary losses, and loads over the whole held-out part."""
        model.eval()
        nats = tokens = 0.0
        loads = {name: torch.zeros(router.num_experts) for name, router in routers(model).items()}
        for batch in self.scored:
            loss = next_token(model, batch)
            nats += float(loss.total - loss.metrics.get("auxiliary", 0.0))
            tokens += float(loss.weight)
            for name, router in routers(model).items():
                loads[name] += router.load
        return {
            "nats": nats / tokens,
            "max_over_mean": [float(load.max() / load.mean()) for load in loads.values()],
            "hardly_used": [float((load < 0.1 * load.mean()).float().mean()) for load in loads.values()],
        }


def compare(text: Text, ffn: MLPConfig | MoEConfig, seed: int) -> dict:
    model = model_of(ffn, seed)
    losses = text.train(model, seed, STEPS)
    count = count_parameters(model.config)
    return {
        "total": count.total, "active": count.active, "flops": training_flops_per_token(model.config, CONTEXT),
        "training_nats": mean(losses[-20:]), **text.score(model),
    }  # fmt: skip


def upcycling(text: Text, seed: int) -> list[dict]:
    """A dense model trained for STEPS; then as many again: dense, upcycled, and experts from nothing."""
    moe, rows = MoEConfig(8, 2, D_FF, balance=Balance(load=0.01)), []
    dense = model_of(DENSE, seed)
    text.train(dense, seed, STEPS)
    models = {
        "upcycled": upcycle(dense, moe, seed),
        "dense, on": dense,
        "experts from nothing": model_of(moe, seed),
    }
    for name, model in models.items():
        curve = [text.score(model)["nats"]]
        for part in range(4):
            text.train(model, seed + 10 * part + 10, STEPS // 4)
            curve.append(text.score(model)["nats"])
        rows.append({"case": name, "curve": curve, "nats": curve[-1]})
    return rows


@torch.no_grad()
def drops(text: Text, seed: int) -> list[dict]:
    """Eight prompts, each continued greedily by 24 tokens among 15 neighbours, with two sets of neighbours."""
    model = model_of(replace(SWITCH, balance=Balance(load=0.01)), seed)
    with torch.enable_grad():
        text.train(model, seed, STEPS)
    rows = []
    for factor in (1.0, 1.25, 2.0, None):
        moe = replace(SWITCH, capacity_factor=factor)
        other = model_of(moe, seed).eval()
        other.load_state_dict(model.state_dict())
        prompts = text.scored[0]["tokens"][:8, :32]
        neighbours = [b["tokens"][:, :32] for b in text.scored[1:3]]
        found = [greedy(other, torch.cat([n[:8], prompts]), 24) for n in neighbours]
        logits = [other(torch.cat([n[:8], prompts]))[-8:] for n in neighbours]
        dropped = [float(router.dropped) for router in routers(other).values()]
        rows.append({
            "case": f"capacity {factor}", "dropped": mean(dropped),
            "largest_difference": float((logits[0] - logits[1]).abs().max()),
            "texts_that_differ": int((found[0][-8:] != found[1][-8:]).any(1).sum()),
        })  # fmt: skip
    return rows


def greedy(model: Transformer, tokens: torch.Tensor, count: int) -> torch.Tensor:
    for _ in range(count):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    return tokens


def further(text: Text, seed: int) -> list[dict]:
    """Multi-token prediction: how much of what it drafts would greedy decoding have said; what it does to the loss."""
    rows = []
    for depth in (0, 1, 2):
        model = model_of(DENSE, seed, **({"multi_token": MultiTokenConfig(depth)} if depth else {}))
        text.train(model, seed, STEPS, objectives.multi_token if depth else next_token)
        row = {"case": f"depth {depth}", **text.score(model)}
        if depth:
            row["accepted"] = acceptance_rate(model, text.scored[0]["tokens"][:, :32], 64)
        rows.append(row)
    return rows


def run(only: str | None, seeds: list[int]) -> None:
    done = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    keys = {(row["sweep"], row["case"], row["seed"]) for row in done}
    torch.set_num_threads(1)

    def keep(sweep: str, case: str, seed: int, values: dict) -> None:
        with RESULTS.open("a") as out:
            out.write(json.dumps({"sweep": sweep, "case": case, "seed": seed, **values}) + "\n")
        print(sweep, case, seed, {k: v for k, v in values.items() if k != "config"}, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        text = Text(Path(folder))
        for seed in seeds:
            for sweep in [only] if only else ["balance", "flops", "grain", "upcycle", "drops", "further"]:
                if sweep in CASES:
                    for name, ffn in CASES[sweep].items():
                        if (sweep, name, seed) not in keys:
                            keep(sweep, name, seed, compare(text, ffn, seed) | {"config": to_dict(ffn)})
                elif not any(key[0] == sweep and key[2] == seed for key in keys):
                    whole = {"upcycle": upcycling, "drops": drops, "further": further}[sweep]
                    for row in whole(text, seed):
                        keep(sweep, row.pop("case"), seed, row)


def table() -> None:
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    for sweep, case in dict.fromkeys((row["sweep"], row["case"]) for row in rows):
        mine = [row for row in rows if (row["sweep"], row["case"]) == (sweep, case)]
        shown = {
            k: [v] if isinstance(v, float | int) else v for k, v in mine[0].items() if isinstance(v, float | int | list)
        }
        print(f"{sweep:8} {case:26} {len(mine)} seeds", end="")
        for key in (key for key in shown if key != "seed"):
            values = [row[key] if isinstance(row[key], list) else [row[key]] for row in mine]
            cells = [(mean(v), stdev(v) if len(v) > 1 else 0.0) for v in zip(*values, strict=True)]
            print(f"  {key}", " ".join(f"{m:.4g}+-{s:.2g}" for m, s in cells), end="")
        print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--only", choices=["balance", "flops", "grain", "upcycle", "drops", "further"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    run(args.only, args.seeds) if args.what == "run" else table()
