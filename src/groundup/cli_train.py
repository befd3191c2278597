"""`groundup train`: pretraining of a model whose shape, data and length the user decides, on any number of ranks."""

import inspect
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.cli_parts import (
    Arguments,
    Parser,
    add_device,
    count,
    number,
    print_json,
    settings_lines,
    whole_number,
    wrong_use,
)
from groundup.config import near, override, plural, separate_overrides

if TYPE_CHECKING:
    from groundup.parallel.plan import ParallelPlan
    from groundup.recipes import Recipe

PRESETS = ("llama", "qwen3", "gpt2", "mamba2")
SHAPE = {"vocab_size": 4096, "num_layers": 4, "d_model": 256, "context_length": 256}
HELD_OUT = 0.05
FACTS = "train.json"
ENGINE = "torch"
# What a recipe says of itself, or what an option of this command says.
NOT_SETTINGS = ("summary", "text", "goal", "target", "measured", "model", "minutes", "tokens", "clock", "tail")
BEGINNINGS = {"files": [], "valid": [], "model": None, "minutes": None, "tokens": None, "seed": None, "out": None,
              "data": None, "checkpoint_every": None}  # fmt: skip


def options(parser: Parser) -> None:
    """The options of the verb."""
    add = parser.add_argument
    add("files", nargs="*", metavar="FILES|key=value", help="text to train on (.txt .md .jsonl .parquet, folders; "
        "default: the bundled corpus), and settings, e.g. num_layers=6 d_model=384 batch_size=32")  # fmt: skip
    add("--model", metavar="NAME", help=f"{', '.join(PRESETS)}, whose sizes are settings, or a published model, whose "
        "vocabulary is learnt anew (default: qwen3)")  # fmt: skip
    add("--valid", action="append", default=[], metavar="FILE", help="text to validate on; may be repeated (default: "
        f"{100 * HELD_OUT:g} in 100 documents)")  # fmt: skip
    add("--minutes", type=number, metavar="X", help="train for so long, by the clock (default: 10)")
    add("--tokens", type=count, metavar="N", help="train on so many tokens, instead of --minutes")
    add("--ranks", type=whole_number, metavar="N",
        help="processes that train together on this machine (default: 1, or as the plan says)")  # fmt: skip
    add("--plan", metavar="PLAN", help="how the ranks divide the work, of data, shard, tensor, context and expert, "
        "e.g. \"data=2 zero=1\", \"shard=2\", \"data=2 tensor=2\"; shard and tensor need optimizer=adamw "
        "(default: each rank has the whole model)")  # fmt: skip
    add("--engine", metavar="NAME", help="what runs a --plan: torch (DDP, fully_shard, DTensor) or groundup (this "
        "package's own, in files to be read) (default: torch)")  # fmt: skip
    add("--restarts", type=count, default=3, metavar="N", help="with --ranks: times to start all ranks again from the "
        "newest checkpoint after one of them died, without progress between (default: 3)")  # fmt: skip
    add("--timeout", type=number, default=600.0, metavar="SECONDS",
        help="with --ranks: in one collective, after which it is a hang (default: 600)")  # fmt: skip
    add("--checkpoint-every", type=whole_number, metavar="N", help="updates between checkpoints (default: 100)")
    add("--out", metavar="DIR", help="run folder to create (default: a new one in runs/)")
    add("--data", metavar="DIR", help="where vocabulary and shards go, or lie from an earlier run (default: OUT/data)")
    add("--resume", metavar="RUN", help="go on with an interrupted run, on any number of ranks")
    add("--seed", type=whole_number, metavar="N", help="of weights, data order and dropout (default: 0)")
    add("--dry-run", action="store_true", help="print what would be trained, and stop")
    add("--json", action="store_true", help="end with one JSON line of results")
    add_device(parser)
    parser.more = _more_help


def _more_help() -> str:
    defaults = {"batch_size": 16, "muon_rate": 0.02, "adam_rate": 0.006, "held_out": HELD_OUT, "curve_points": 4}
    shape = ", ".join(f"{key}={value}" for key, value in SHAPE.items())
    return "\n".join([
        f"settings of the shape: whatever the preset takes, by default {shape}; model.KEY=VALUE reaches every part",
        "other settings, here with their defaults:",
        *settings_lines("groundup.recipes.recipe", "Recipe", changed=defaults, left_out=NOT_SETTINGS),
    ])  # fmt: skip


def run(options: Arguments) -> int:
    """Train, score, and leave a model folder; returns the exit code."""
    from groundup.device import rank, world_size

    plan = _plan(options)
    if options.ranks is None:
        options.ranks = 1 if plan is None else plan.size
    if options.ranks < 1:
        wrong_use("groundup train", f"--ranks {options.ranks}: expected at least 1")
    facts, recipe = _saved(options) if options.resume else _new(options)
    ranks = max(world_size(), options.ranks)
    if plan is not None:
        _check_plan(plan, recipe, ranks, options.engine or ENGINE)
    elif options.engine is not None:
        raise ValueError(f"--engine {options.engine} is for a --plan; without one the trainer itself sums gradients")
    elif recipe.batch_size % ranks:
        raise ValueError(
            f"batch_size={recipe.batch_size} cannot be shared by {ranks} ranks: give a multiple of {ranks}"
        )
    launched = world_size() > 1 and options.resume
    if rank() == 0 and not launched:
        _show(recipe, ranks, plan, options.json and options.dry_run)
    if options.dry_run:
        return 0
    return _first(options, recipe, facts) if world_size() == 1 else _rank(options, recipe, facts)


def _plan(options: Arguments) -> "ParallelPlan | None":
    from groundup.parallel.plan import ParallelPlan

    return None if options.plan is None else ParallelPlan.parse(options.plan)


def _check_plan(plan: "ParallelPlan", recipe: "Recipe", ranks: int, engine: str) -> None:
    from groundup.recipes.ranks import check_plan_of

    if plan.size == 1:
        raise ValueError(f"--plan {plan.text!r}: one rank divides nothing; leave it out")
    if plan.size != ranks:
        raise ValueError(
            f"--plan {plan.text!r} is for {plan.size} ranks; here are {ranks}: leave out --ranks, or agree"
        )
    check_plan_of(recipe, plan, engine)


def _saved(options: Arguments) -> tuple[dict[str, Any], "Recipe"]:
    from groundup.config import from_dict
    from groundup.files import read_json
    from groundup.recipes import Recipe

    _refuse_beside_resume(options)
    folder = Path(options.resume)
    if not (folder / FACTS).is_file():
        raise ValueError(f"{folder}: no {FACTS}: not a run of groundup train")
    return read_json(folder / FACTS), from_dict(Recipe, read_json(folder / "recipe.json"))


def _refuse_beside_resume(options: Arguments) -> None:
    given = [name for name, usual in BEGINNINGS.items() if getattr(options, name) != usual]
    if given:
        raise ValueError(
            f"--resume goes on with the run's own settings: leave out {', '.join(given)}; --ranks, --plan, "
            "--engine, --restarts, --timeout and --device may differ"
        )


def _new(options: Arguments) -> tuple[dict[str, Any], "Recipe"]:
    files, words = separate_overrides(options.files)
    facts = {
        "files": [str(Path(file).resolve()) for file in files],
        "valid": [str(Path(file).resolve()) for file in options.valid],
        "data": options.data and str(Path(options.data).resolve()),
        "seed": options.seed or 0,
        "checkpoint_every": options.checkpoint_every or 100,
    }
    return facts, _recipe(options, words)


def _recipe(options: Arguments, words: list[str]) -> "Recipe":
    """The settings as a recipe without a goal. ValueError for a key that nothing has."""
    from dataclasses import fields

    from groundup.presets import PUBLISHED
    from groundup.recipes import Recipe

    name = options.model or "qwen3"
    own = [field.name for field in fields(Recipe) if field.name not in NOT_SETTINGS]
    sizes = _sizes(name) if name in PRESETS else []
    if name not in PRESETS and name not in PUBLISHED:
        raise ValueError(f"--model {name!r} is not known{near(name, [*PRESETS, *PUBLISHED])}")
    shape: dict[str, str] = {}
    rest: list[str] = []
    for word in words:
        key, _, value = word.partition("=")
        if key in sizes:
            shape[key] = value
        elif key in own or key.startswith("model."):
            rest.append(word)
        else:
            raise ValueError(f"unknown setting {key!r}{near(key, [*own, *sizes])}; see groundup train --help")
    if options.minutes is not None and options.tokens is not None:
        raise ValueError("--minutes and --tokens: only one says when the run ends")
    minutes = None if options.tokens is not None else 10.0 if options.minutes is None else options.minutes
    recipe = Recipe(
        summary=f"{name}, a run of your own", text="your text", goal="", target=None, model=_model(name, shape),
        batch_size=16, muon_rate=0.02, adam_rate=0.006, minutes=minutes, tokens=options.tokens,
        held_out=0.0 if options.valid else HELD_OUT, curve_points=4,
    )  # fmt: skip
    return override(recipe, *rest)


def _sizes(name: str) -> list[str]:
    from groundup import presets

    return list(inspect.signature(getattr(presets, name)).parameters)


def _model(name: str, shape: dict[str, str]) -> Any:
    import json

    from groundup import presets

    if name not in PRESETS:
        return presets.published(name)
    make = getattr(presets, name)
    values: dict[str, Any] = dict(SHAPE)
    for key, raw in shape.items():
        try:
            values[key] = json.loads(raw)
        except ValueError:
            values[key] = raw
    return make(**values)


def _show(recipe: "Recipe", ranks: int, plan: "ParallelPlan | None", as_json: bool) -> None:
    from groundup.accounting import count_parameters
    from groundup.config import to_dict

    length = f"{recipe.minutes:g} minutes" if recipe.tokens is None else f"{recipe.tokens:,} tokens"
    parameters = count_parameters(recipe.model).total
    shared = f", on {ranks} ranks of {plural(recipe.batch_size // ranks, 'row')}" if ranks > 1 else ""
    if plan is not None:
        shared = f", on {plural(ranks, 'rank')}: {plan.text or 'one process'}"
    print(f"model   {recipe.summary}: {plural(parameters, 'parameter')}")
    print(f"train   updates of {plural(recipe.batch_tokens, 'token')}, for {length}{shared}")
    if as_json:
        facts = {"ranks": ranks, "plan": None if plan is None else plan.text}
        print_json({"recipe": to_dict(recipe), "parameters": parameters, **facts})


def _first(options: Arguments, recipe: "Recipe", facts: dict[str, Any]) -> int:
    """In the process that the user started: prepare the text, then train here, or start the ranks and wait."""
    from groundup.files import fresh_path
    from groundup.recipes import prepare

    out = Path(options.resume or options.out or fresh_path("train"))
    if not options.resume:
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out}: not empty; name a new folder, or go on with it: --resume {out}")
        _write_facts(out, recipe, facts)
    if options.ranks == 1:
        return _train(options, recipe, facts, out)
    prepare(recipe, _files(facts), facts["valid"], facts["data"] or out / "data")
    return _launch(options, out)


def _launch(options: Arguments, out: Path) -> int:
    from groundup.parallel import launch
    from groundup.train import checkpoint

    command = [sys.executable, "-m", "groundup.cli", "train", "--resume", str(out)]
    command += ["--timeout", str(options.timeout), *(["--json"] if options.json else [])]
    command += ["--device", options.device] if options.device else []
    command += ["--plan", options.plan] if options.plan is not None else []
    command += ["--engine", options.engine] if options.engine is not None else []

    def newest() -> Path | None:
        return next(iter(checkpoint.checkpoints(out / "checkpoints")), None)

    code = launch(command, options.ranks, restarts=options.restarts, progress=newest)
    if code:
        how = f"--ranks {options.ranks}" if options.plan is None else f'--plan "{options.plan}"'
        how += f" --engine {options.engine}" if options.engine is not None else ""
        print(f"go on with: groundup train --resume {out} {how}", file=sys.stderr)
    return code


def _rank(options: Arguments, recipe: "Recipe", facts: dict[str, Any]) -> int:
    """In a rank, of `launch`, where the run is there to be gone on with, or of torchrun."""
    from groundup.device import rank

    if not (options.resume or options.out):
        raise ValueError("several ranks need one folder: name it with --out DIR")
    out = Path(options.resume or options.out)
    if rank() == 0 and not options.resume and not (out / FACTS).exists():
        _write_facts(out, recipe, facts)
    return _train(options, recipe, facts, out)


def _write_facts(out: Path, recipe: "Recipe", facts: dict[str, Any]) -> None:
    from groundup.config import to_dict
    from groundup.files import write_json

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / FACTS, facts)
    write_json(out / "recipe.json", to_dict(recipe))


def _files(facts: dict[str, Any]) -> list[Any]:
    from groundup import bundled

    return facts["files"] or [bundled.path()]


def _train(options: Arguments, recipe: "Recipe", facts: dict[str, Any], out: Path) -> int:
    from groundup.recipes import run as run_recipe

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    result = run_recipe(
        recipe, _files(facts), facts["valid"], out=out, data_folder=facts["data"], seed=facts["seed"],
        device=options.device, checkpoint_every=facts["checkpoint_every"], resume=True, timeout=options.timeout,
        plan=_plan(options), engine=options.engine or ENGINE,
    )  # fmt: skip
    if result["rank"] != 0:
        return 130 if result["stopped_by"] == "interrupt" else 0
    trained = f"{result['seconds']:.0f} s, {result['tokens']:,} tokens in {plural(result['steps'], 'update')}"
    if "loss" not in result:
        print(f"stopped after {trained}; go on with: groundup train --resume {out}", file=sys.stderr)
        return 130
    print(f"loss    {result['loss']:.4f} nats per token on {plural(result['validation_tokens'], 'token')}; "
          f"{result['nats_per_character']:.4f} per character")  # fmt: skip
    print(f"time    {trained}")
    print(f"run     {out}")
    if options.json:
        print_json({**result, "run": str(out)})
    return 130 if result["stopped_by"] == "interrupt" else 0
