"""`groundup recipe`: lists the recipes, shows one, or runs it on the user's files."""

import signal
from typing import TYPE_CHECKING

from groundup.cli_parts import Arguments, Parser, add_device, number, print_json, print_table, whole_number
from groundup.config import near, override, plural, separate_overrides

if TYPE_CHECKING:
    from groundup.recipes import Recipe


def options(parser: Parser) -> None:
    """The options of the verb."""
    add = parser.add_argument
    add("name", nargs="?", metavar="RECIPE", help="which one (none: list them)")
    add("files", nargs="*", metavar="FILES|key=value", help="text to train on, and numbers that differ from the "
        "recipe's, e.g. batch_size=64 model.num_layers=6")  # fmt: skip
    add("--valid", action="append", default=[], metavar="FILE", help="text to validate on; may be repeated")
    add("--minutes", type=number, metavar="X", help="train for so long, by the clock (default: the recipe's length)")
    add("--out", metavar="DIR", help="run folder to create (default: a new one in runs/)")
    add("--data", metavar="DIR", help="where vocabulary and shards go, or lie from an earlier run (default: OUT/data)")
    add("--seed", type=whole_number, default=0, metavar="N", help="of weights, data order and dropout (default: 0)")
    add("--dry-run", action="store_true", help="print the recipe and stop")
    add("--json", action="store_true", help="end with one JSON line of results")
    add_device(parser)


def run(options: Arguments) -> int:
    """List, show, or run; returns the exit code."""
    from groundup.recipes import RECIPES

    if options.name is None:
        _list(RECIPES)
        if options.json:
            print_json({name: recipe.outcome for name, recipe in RECIPES.items()})
        return 0
    files, words = separate_overrides(options.files)
    recipe = _changed(options.name, words, options.minutes)
    _show(options.name, recipe, options.json and options.dry_run)
    return 0 if options.dry_run else _run(options, recipe, files)


def _changed(name: str, words: list[str], minutes: float | None) -> "Recipe":
    """The recipe with the user's numbers. ValueError for a key that is none of its own."""
    from dataclasses import fields

    from groundup.recipes import find

    recipe = find(name)
    known = [field.name for field in fields(recipe)]
    for word in words:
        if (key := word.partition("=")[0].partition(".")[0]) not in known:
            raise ValueError(f"unknown number {key!r} in {word!r}{near(key, known)}; --dry-run shows the recipe's")
    if minutes is not None:
        words = [*words, f"minutes={minutes}", "tokens=null"]
    return override(recipe, *words)


def _list(recipes: "dict[str, Recipe]") -> None:
    rows = [[name, r.summary, f"{r.target:g}", r.outcome] for name, r in recipes.items()]
    print_table("recipes", ["name", "what", "loss to reach", "measured"], rows, words=(0, 1, 3))
    print("groundup recipe NAME --dry-run says which text one is for.")


def _show(name: str, recipe: "Recipe", as_json: bool) -> None:
    from groundup.accounting import count_parameters
    from groundup.config import to_dict

    length = f"{recipe.minutes:g} minutes" if recipe.tokens is None else f"{recipe.tokens:,} tokens"
    parameters = count_parameters(recipe.model).total
    print(f"{name}: {recipe.summary}")
    print(f"text    {recipe.text}")
    print(f"goal    {recipe.target:g} nats per token; {recipe.goal}")
    print(f"known   {recipe.outcome}")
    print(f"model   {parameters:,} parameters; updates of {plural(recipe.batch_tokens, 'token')}, for {length}")
    if as_json:
        print_json({"recipe": to_dict(recipe), "parameters": parameters})


def _run(options: Arguments, recipe: "Recipe", files: list[str]) -> int:
    from groundup.files import fresh_path
    from groundup.recipes import run as run_recipe

    # A stop from outside is answered like Ctrl-C: the step ends, and what was learnt is scored and kept.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    out = options.out or str(fresh_path(options.name))
    result = run_recipe(
        recipe, files, options.valid, out=out, data_folder=options.data, seed=options.seed, device=options.device
    )
    reached = "reached" if result["loss"] <= recipe.target else "missed"
    print(f"loss    {result['loss']:.4f} nats per token on {plural(result['validation_tokens'], 'token')} "
          f"(goal {recipe.target:g}: {reached}); {result['nats_per_character']:.4f} per character")  # fmt: skip
    print(f"time    {result['seconds']:.0f} s, {result['tokens']:,} tokens in {plural(result['steps'], 'update')}")
    print(f"run     {out}")
    if options.json:
        print_json({**result, "run": out})
    return 130 if result["stopped_by"] == "interrupt" else 0
