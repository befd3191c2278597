"""Running a recipe: train by its numbers and its clock, score, and leave everything that a reader needs to check it."""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from groundup import data, optim, train
from groundup.accounting import training_flops_per_token
from groundup.accounting.hardware import gemm_rate
from groundup.config import to_dict
from groundup.device import default_device, environment, rank, require_device, set_seed, world_size
from groundup.files import read_json, write_json
from groundup.model import Transformer
from groundup.model.identity_start import start_as_identity
from groundup.model.pretrained import save_pretrained
from groundup.optim.groups import split_for_muon
from groundup.parallel import joined, orthogonalize_on_ranks
from groundup.parallel.engine import Engine
from groundup.parallel.plan import ParallelPlan
from groundup.recipes.curve import Curve, scores
from groundup.recipes.ranks import check_plan_of, divide, whole_model
from groundup.recipes.recipe import Recipe
from groundup.recipes.text import Files, Prepared, await_prepared, prepare
from groundup.train import checkpoint, objectives, precision
from groundup.train.compiling import compile_blocks
from groundup.train.ranks import texts_of_ranks

VECTOR_RATE = 0.01
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
    result = _facts(recipe, model, ran) | {
        "seconds": time.monotonic() - began,
        "seed": seed,
        "device": where.type,
        "rank": 0,
        "ranks": place.size,
        "plan": None if plan is None else plan.text,
        "engine": None if plan is None else engine,
    }
    if ran.stopped_by == "interrupt" and checkpoint_every is not None:
        return result
    save_pretrained(model, prepared.folder, out)
    result = scores(model, prepared, recipe) | result
    write_json(out / "result.json", result)
    return result


def _facts(recipe: Recipe, model: Transformer, ran: train.Run) -> dict[str, Any]:
    """Of the training, whatever it ran on."""
    return {
        "clock": recipe.clock,
        "steps": ran.step,
        "tokens": ran.tokens,
        "epochs": ran.epochs,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_loss": float(np.mean(ran.losses[-50:])) if ran.losses else None,
        "target": recipe.target,
        "stopped_by": ran.stopped_by,
    }


def _prepared(recipe: Recipe, files: Files, validation: Files, folder: Path) -> Prepared:
    if rank() == 0:
        return prepare(recipe, files, validation, folder)
    return await_prepared(recipe, folder, lambda text: print(f"rank {rank()}: {text}", file=sys.stderr, flush=True))


def seconds_trained(out: Path) -> float:
    """Seconds of training that the newest whole checkpoint of a run stands for; 0 where there is none."""
    path = checkpoint.latest(out / "checkpoints")
    return 0.0 if path is None else float(read_json(path / checkpoint.STATE)["run"]["seconds"])


def make_model(recipe: Recipe, device: torch.device, seed: int) -> Transformer:
    """The recipe's model as training begins with it, on its device and in its precision."""
    model = Transformer(recipe.model)
    start_as_identity(model, seed)
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


def _precision(recipe: Recipe, device: torch.device) -> str:
    """What the recipe says, or the faster one here; of several ranks, as the first finds."""
    if recipe.precision != "auto":
        return recipe.precision
    threads = torch.get_num_threads()
    faster = max(("fp32", "bf16"), key=lambda dtype: gemm_rate(device, dtype, threads, PROBE_SECONDS))
    return texts_of_ranks(faster, device)[0]
