"""What the ranks of `test_layouts` run: the same tensors saved under each plan, and loaded under it from all others."""

import importlib
from pathlib import Path

import torch
import torch.distributed as dist

from groundup.optim import AdamW
from groundup.parallel.pieces import Parts
from groundup.parallel.plan import ParallelPlan
from groundup.parallel.sharded_checkpoint import load_sharded
from groundup.parallel.sharded_saving import ShardedSaver
from tests.parallel.parity import ENGINES, transformer

SINGLE = "single"
PLANS = {
    ("deep", "groundup", 2): (
        "data=2", "data=2 zero=1", "data=2 zero=2", "shard=2", "tensor=2", "tensor=2 sequence=true", "context=2",
        "pipeline=2 microbatches=2", "pipeline=2 chunks=2 schedule=interleaved microbatches=2",
    ),
    ("deep", "groundup", 4): (
        "data=4 zero=1", "shard=4", "data=2 tensor=2", "shard=2 tensor=2", "data=2 shard=2",
        "pipeline=2 data=2 microbatches=2",
    ),
    ("deep", "torch", 2): (
        "data=2 zero=1", "data=2 zero=2", "shard=2", "tensor=2",
        "pipeline=2 chunks=2 schedule=interleaved microbatches=2",
    ),
    ("deep", "torch", 4): ("shard=4", "shard=2 tensor=2", "data=2 shard=2", "pipeline=2 data=2 microbatches=2"),
    ("experts", "groundup", 2): ("data=2", "shard=2", "tensor=2", "expert=2"),
    ("experts", "groundup", 4): ("expert=4", "data=2 expert=2", "shard=2 expert=2"),
    ("experts", "torch", 2): ("shard=2", "expert=2"),
    ("experts", "torch", 4): ("shard=2 expert=2",),
}  # fmt: skip
"""By model, engine and number of ranks. Of torch's engine those that cut otherwise than ours."""


def model_of(kind):
    torch.manual_seed(0)
    return transformer(kind, torch.float32)


def original(kind):
    """(whole weights, whole states of AdamW): random bits under every name."""
    model = model_of(kind)
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: torch.randn(t.shape, generator=generator).to(t.dtype) if t.is_floating_point() else t.clone()
        for name, t in model.state_dict().items()
    }
    if kind == "deep":
        weights["head.weight" if "head.weight" in weights else "embed.weight"] = weights["embed.weight"]
    states = {
        name: {
            "exp_avg": torch.randn(p.shape, generator=generator),
            "exp_avg_sq": torch.rand(p.shape, generator=generator),
            "step": torch.tensor(float(number)),
        }
        for number, (name, p) in enumerate(model.named_parameters())
    }
    return weights, states


def optimizer_over(named):
    return AdamW([p for _, p in named], lr=1e-3)


def folder_of(root, kind, engine, plan):
    return Path(root) / kind / engine / plan.replace(" ", "_").replace("=", "")


def engine_of(kind, engine, plan):
    made = importlib.import_module(ENGINES[engine]).apply_plan(model_of(kind), ParallelPlan.parse(plan))
    made.optimize(optimizer_over)
    return made


def fill(engine, kind):
    weights, states = original(kind)
    engine.load_full(weights)
    engine.load_optimizer_state(states)


def local(parts):
    """Copies of all that this rank has."""
    states = {f"{key} of {name}": piece for name, key, piece in parts.states()}
    return {name: piece.tensor.clone() for name, piece in (parts.weights | states).items()}


def forget(parts):
    for piece in parts.weights.values():
        piece.tensor.zero_()
    for each in parts.stepped():
        each.member.state.clear()


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def gathered_is_original(engine, kind):
    weights, states = original(kind)
    found = engine.optimizer_state()
    return same(engine.full_state_dict(), weights) and found.keys() == states.keys() and all(
        same(found[name], states[name]) for name in states
    )  # fmt: skip


def save_all(rank, size, root, chosen):
    """Under each (kind, engine, plan) of this many ranks."""
    for kind, name, plan in chosen:
        engine = engine_of(kind, name, plan)
        fill(engine, kind)
        with ShardedSaver(folder_of(root, kind, name, plan)) as saver:
            saver.save(1, Parts.of_engine(engine), {"kind": kind})
            engine.load_full({name: torch.zeros_like(t) for name, t in engine.full_state_dict().items()})
    return True


def load_all(rank, size, root, chosen, sources, distance):
    """Under each plan of `chosen`, from each of `sources` of one process and one in `distance` of the others; the
    number of pairs, and those that differ."""
    count, wrong = 0, []
    for number, (kind, name, plan) in enumerate(chosen):
        engine = engine_of(kind, name, plan)
        fill(engine, kind)
        expected = local(Parts.of_engine(engine))
        alike = [source for source in sources if source[0] == kind]
        for other, source in enumerate(alike):
            if (number + other) % distance and source[1] != SINGLE:
                continue
            forget(Parts.of_engine(engine))
            state = load_sharded(folder_of(root, *source) / "step-1", Parts.of_engine(engine))
            count += 1
            if state != {"kind": kind} or not same(local(Parts.of_engine(engine)), expected):
                wrong.append((source, (kind, name, plan)))
        assert gathered_is_original(engine, kind), f"{kind} {name} {plan}"
    flags = torch.tensor([len(wrong)])
    dist.all_reduce(flags)
    return count, wrong, int(flags)
