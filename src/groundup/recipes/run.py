"""Running a recipe: train by its numbers and its clock, score, and leave everything that a reader needs to check it."""

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from groundup import data, optim, train
from groundup.accounting import training_flops_per_token
from groundup.accounting.hardware import gemm_rate
from groundup.config import to_dict
from groundup.device import default_device, environment, rank, require_device, set_seed, world_size
from groundup.evaluation import token_nats
from groundup.files import read_json, write_json
from groundup.model import Transformer
from groundup.model.pretrained import save_pretrained
from groundup.optim.groups import split_for_muon
from groundup.parallel import joined, orthogonalize_on_ranks
from groundup.parallel.engine import Engine
from groundup.parallel.plan import ParallelPlan
from groundup.recipes.ranks import check_plan_of, divide, whole_model
from groundup.recipes.recipe import Recipe
from groundup.recipes.text import Files, Ids, Prepared, await_prepared, prepare
from groundup.train import checkpoint, objectives, precision
from groundup.train.compiling import compile_blocks
from groundup.train.ranks import largest_over_ranks, texts_of_ranks

EMBEDDING_STD, HEAD_STD = 0.1, 0.02
VECTOR_RATE = 0.01
CURVE_TOKENS = 50_000
LOOK_EVERY = 10
PROBE_SECONDS = 0.1


def run(
    recipe: Recipe,
    files: Files,
    validation: Files = (),
    *,
    out: str | Path,
    data_folder: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
    checkpoint_every: int | None = None,
    resume: bool = False,
    timeout: float = 600.0,
    plan: ParallelPlan | None = None,
    engine: str = "torch",
) -> dict[str, Any]:
    """Run a recipe into the new folder `out`; what result.json there says.

    data_folder: where the shards go, or already are, so that a second run need not write them (default: out/data).
    checkpoint_every: updates between two checkpoints (null: only at the end). A run that is interrupted is then left as
    it is, to be gone on with; else what was learnt so far is scored and kept.
    resume: go on with the newest whole checkpoint in `out`, if there is one; on any number of ranks.
    timeout: seconds in one collective that are a hang (see `parallel.joined`).
    plan: how the ranks divide the work (null: all have the whole model, and rows of their own). A run may be gone on
    with under any other that its optimizer allows.
    engine: what runs a plan, "torch" or "groundup" (see `parallel.engines`); a run may go on with the other one.

    `out` then is a model folder, with recipe.json, env.json, metrics.jsonl, curve.jsonl (scores on the way, by the
    clock) and result.json. The loss is the mean over all validation tokens, each predicted once, in windows of the
    recipe's context that share no target.

    Among several ranks (`parallel.launch`, torchrun) each trains on its part of every batch. The first alone writes,
    and scores at the end, when nobody waits for it any more; the others say only how their training ended.

    Raises ValueError where `out` holds something, for a plan that cannot be, and what `text.prepare` raises.
    """
    if plan is not None:
        check_plan_of(recipe, plan, engine)
    started = time.monotonic()
    out = Path(out)
    if not resume and out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: not empty; name a new folder")
    set_seed(seed)
    where = require_device(device) if device else default_device()
    prepared = _prepared(recipe, files, validation, Path(data_folder or out / "data"))
    if rank() == 0:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "recipe.json", to_dict(recipe))
        write_json(out / "env.json", environment())
    began = (started if recipe.clock == "everything" else time.monotonic()) - seconds_trained(out)
    keeping = {"checkpoint_every": checkpoint_every, "resume": resume}
    with joined(timeout) as place:
        model = make_model(recipe, where, seed)
        ranks = None if plan is None else divide(recipe, model, plan, make_optimizer, engine)
        ran = _train(recipe, model, prepared, out, seed, began, progress, keeping, ranks)
        model = model if ranks is None else whole_model(recipe, model, ranks)
    if place.rank != 0:
        return {"rank": place.rank, "stopped_by": ran.stopped_by}
    seconds = time.monotonic() - began
    result = {
        "seconds": seconds,
        "clock": recipe.clock,
        "steps": ran.step,
        "tokens": ran.tokens,
        "epochs": ran.epochs,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_loss": float(np.mean(ran.losses[-50:])) if ran.losses else None,
        "target": recipe.target,
        "seed": seed,
        "device": where.type,
        "rank": 0,
        "ranks": place.size,
        "plan": None if plan is None else plan.text,
        "engine": None if plan is None else engine,
        "stopped_by": ran.stopped_by,
    }
    if ran.stopped_by == "interrupt" and checkpoint_every is not None:
        return result
    save_pretrained(model, prepared.folder, out)
    result = {**_scores(model, prepared, recipe), **result}
    write_json(out / "result.json", result)
    return result


def _prepared(recipe: Recipe, files: Files, validation: Files, folder: Path) -> Prepared:
    if rank() == 0:
        return prepare(recipe, files, validation, folder)
    return await_prepared(recipe, folder, lambda text: print(f"rank {rank()}: {text}", file=sys.stderr, flush=True))


def seconds_trained(out: Path) -> float:
    """Seconds of training that the newest whole checkpoint of a run stands for; 0 where there is none."""
    path = checkpoint.latest(out / "checkpoints")
    return 0.0 if path is None else float(read_json(path / checkpoint.STATE)["run"]["seconds"])


def make_model(recipe: Recipe, device: torch.device, seed: int) -> Transformer:
    """Every block starts as the identity; embeddings and head start small, so the first loss is log(vocabulary)."""
    model = Transformer(recipe.model)
    model.init_weights(seed, residual="zero")
    with torch.no_grad():
        model.embed.weight.mul_(EMBEDDING_STD / model.embed.weight.std())
        if model.head is not None:
            model.head.weight.mul_(HEAD_STD / model.head.weight.std())
    model = model.to(device)
    precision.apply(model, _precision(recipe, device))
    model.dropout = recipe.dropout
    return model


def make_optimizer(recipe: Recipe, model: Any, alike: bool = True) -> optim.Optimizers:
    """Muon for the blocks' matrices, or AdamW, which alone decay, and AdamW for embeddings, head and norms.

    model: or its parameters by name, of which a rank may have parts.
    alike: all ranks have the same matrices and gradients, so that they can share Muon's work.
    """
    matrices, rest = split_for_muon(model)
    together = orthogonalize_on_ranks if world_size() > 1 and alike else None
    tables = [p for _, p in rest if p.ndim > 1]
    vectors = [p for _, p in rest if p.ndim == 1]
    groups = [{"params": tables}, {"params": vectors, "lr": min(recipe.adam_rate, VECTOR_RATE)}]
    if recipe.optimizer == "adamw":
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, *groups]
        return optim.Optimizers([optim.AdamW(groups, lr=recipe.adam_rate, eps=1e-10, weight_decay=0.0)])
    muon = optim.Muon(matrices, recipe.muon_rate, weight_decay=recipe.weight_decay, together=together)
    return optim.Optimizers([muon, optim.AdamW(groups, lr=recipe.adam_rate, eps=1e-10, weight_decay=0.0)])


def schedule(recipe: Recipe) -> Any:
    """By the clock where it ends the run, by steps where the tokens do."""
    if recipe.steps is None:
        return optim.ClockDecay(recipe.warmup, recipe.decay)
    return optim.warmup_stable_decay(min(recipe.warmup, recipe.steps // 4), recipe.steps, recipe.decay)


def _train(
    recipe: Recipe,
    model: Transformer,
    prepared: Prepared,
    out: Path,
    seed: int,
    began: float,
    progress: bool,
    keeping: dict[str, Any],
    engine: Engine | None,
) -> train.Run:
    part, parts = (rank(), world_size()) if engine is None else (engine.mesh.rows, engine.mesh.row_parts)
    if engine is None and recipe.compile is not False:
        compile_blocks(model, required=recipe.compile is True)
    context = recipe.model.context_length
    loader = data.Loader(
        prepared.shards, recipe.batch_size, context, seed=seed, rank=part, world_size=parts,
        document_masks=False, shorten=True,
        device=model.device, prefetch=2 if model.device.type == "cuda" else 0,
    )  # fmt: skip
    deadline = None if recipe.minutes is None else began + 60.0 * recipe.minutes
    curve = Curve(out / "curve.jsonl", recipe, prepared, began, deadline, engine)
    return train.train(
        model,
        loader,
        objectives.pretraining(model),
        make_optimizer(recipe, model) if engine is None else engine.optimizer,
        recipe.steps,
        schedule=schedule(recipe),
        every={LOOK_EVERY: curve.look} if recipe.curve_points else {},
        run_dir=out,
        deadline=deadline,
        flops_per_token=training_flops_per_token(recipe.model, context),
        progress=progress,
        engine=engine,
        **keeping,
    )


@dataclass
class Curve:
    """Scores on the beginning of the validation text, at equal parts of the run; their time is the run's."""

    path: Path
    recipe: Recipe
    prepared: Prepared
    began: float
    deadline: float | None
    engine: Engine | None = None
    points: list[dict[str, float]] = field(default_factory=list)
    twin: Transformer | None = None

    def __post_init__(self) -> None:
        if self.path.exists():  # a run that is gone on with
            self.points = [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]

    def look(self, step: int, model: Any, ran: train.Run) -> None:
        """The trainer's hook: score if the next part of the run is over."""
        self.points = [point for point in self.points if point["step"] < step]
        due = len(self.points) + 1
        if due > self.recipe.curve_points or not self.is_time(step, due, model.device):
            return
        if self.twin is None:  # the trained one is compiled, for batches of one shape
            self.twin = Transformer(self.recipe.model).to(model.device)
        self.twin.load_state_dict(model.state_dict() if self.engine is None else self.engine.full_state_dict())
        self.twin.compute_dtype = model.compute_dtype
        loss = score(self.twin, first_tokens(self.prepared.validation, CURVE_TOKENS), self.prepared.begin)
        self.points.append({"step": step, "seconds": time.monotonic() - self.began, "tokens": ran.tokens, "loss": loss})
        if rank() == 0:  # all ranks score, as none could go on meanwhile: nobody waits in a collective
            self.path.write_text("".join(json.dumps(point) + "\n" for point in self.points), encoding="utf-8")

    def is_time(self, step: int, due: int, device: torch.device) -> bool:
        """Whether the run is so far; where weights are gathered for it, all ranks go by the fastest clock."""
        reached = self.share(step) * (self.recipe.curve_points + 1) >= due
        return reached if self.engine is None else largest_over_ranks([float(reached)], device)[0] > 0

    def share(self, step: int) -> float:
        """How much of the run is over."""
        if self.deadline is None:
            return step / (self.recipe.steps or math.inf)
        return (time.monotonic() - self.began) / (self.deadline - self.began)


def first_tokens(documents: Sequence[Ids], most: int) -> list[Ids]:
    """The documents from the first on, as many whole ones as fit, and at least a part of the first."""
    kept: list[Ids] = [documents[0][:most]]
    room = most - len(kept[0])
    for document in documents[1:]:
        if len(document) > room:
            break
        kept.append(document)
        room -= len(document)
    return kept


def score(model: Transformer, documents: Sequence[Ids], begin: int, stride: int | None = None) -> float:
    """Mean nats per token. Windows advance by `stride` (default: the context, so that they share no target)."""
    context = model.config.context_length
    nats = token_nats(model, documents, begin=begin, context_length=context, stride=stride or context)
    return float(np.concatenate(nats).mean())


def _scores(model: Transformer, prepared: Prepared, recipe: Recipe) -> dict[str, Any]:
    """Losses on the whole validation text, by a model that is not compiled.

    Of a text that was cut, which is short, also with windows that advance by a quarter of the context.
    """
    twin = Transformer(recipe.model).to(model.device)
    twin.load_state_dict(model.state_dict())
    twin.compute_dtype = model.compute_dtype
    text, context = (prepared.validation, prepared.begin), recipe.model.context_length
    loss = score(twin, *text)
    return {
        "loss": loss,
        "loss_sliding": score(twin, *text, max(1, context // 4)) if recipe.tail else None,
        "nats_per_character": loss * prepared.tokens / prepared.characters,
        "validation_tokens": prepared.tokens,
        "context_length": context,
    }


def _precision(recipe: Recipe, device: torch.device) -> str:
    """What the recipe says, or the faster one here; of several ranks, as the first finds."""
    if recipe.precision != "auto":
        return recipe.precision
    threads = torch.get_num_threads()
    faster = max(("fp32", "bf16"), key=lambda dtype: gemm_rate(device, dtype, threads, PROBE_SECONDS))
    return texts_of_ranks(faster, device)[0]
