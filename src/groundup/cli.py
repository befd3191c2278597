"""The command line: a table of verbs. Nothing heavy is imported until a verb runs, so --help answers at once."""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from groundup import (
    cli_ablate,
    cli_chat,
    cli_compress,
    cli_doctor,
    cli_flops,
    cli_generate,
    cli_history,
    cli_inspect,
    cli_ledger,
    cli_model,
    cli_plan,
    cli_profile,
    cli_recipe,
    cli_report,
    cli_serve,
    cli_sweep,
    cli_tokenizer,
    cli_train,
)
from groundup.cli_parts import (
    Arguments,
    Parser,
    Verb,
    add_device,
    describe,
    print_json,
    settings_lines,
    whole_number,
    wrong_use,
)
from groundup.config import near, nearest, plural

STARTED = time.monotonic()
TOP_OPTIONS = ("-h", "--help", "--version")
# Any of these makes a folder a run or a model.
RUN_FILES = ("config.json", "plan.json", "metrics.jsonl", "result.json", "model.safetensors")
SHOWN_RUNS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _check_first_word(arguments)
    options = _parse(arguments)
    if not options.verb:
        _parser().print_help()
        return 2
    try:
        _refuse_folder_of_runs(options)
        return VERBS[options.verb].run(options)
    except KeyboardInterrupt:
        print(f"groundup {options.verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except (ValueError, OSError, MemoryError, ImportError, FloatingPointError) as error:
        if options.traceback:
            raise
        print(f"groundup {options.verb}: error: {describe(error)}", file=sys.stderr)
        return 1


def _check_first_word(arguments: list[str]) -> None:
    first = arguments[0] if arguments else "--help"
    if first.startswith("-") and first not in TOP_OPTIONS:
        wrong_use("groundup", f"unknown option {first}{near(first, TOP_OPTIONS)}; a command comes before its options")
    if not first.startswith("-") and first not in VERBS:
        wrong_use("groundup", f"unknown command {first!r}{nearest(first, VERBS)}")


def _parse(arguments: list[str]) -> Arguments:
    """FILES and key=value words may stand before and after options: argparse alone takes one group of them."""
    options, late = _parser().parse_known_args(arguments)
    if late and not hasattr(options, "files"):
        wrong_use(f"groundup {options.verb}", f"does not take {' '.join(map(repr, late))}")
    if late:
        options.files += late
    return options


def _refuse_folder_of_runs(options: Arguments) -> None:
    """ValueError when the folder that was named is no run, but holds some: they are listed, the newest first."""
    named = next((value for name in ("model", "run_folders", "resume") if (value := getattr(options, name, None))), [])
    for each in [named] if isinstance(named, str) else named:
        _refuse_if_it_holds_runs(each)


def _refuse_if_it_holds_runs(named: str) -> None:
    if _run_files(Path(named)) or not Path(named).is_dir():
        return
    found = {folder: files for folder in Path(named).iterdir() if (files := _run_files(folder))}
    newest = sorted(found, key=lambda folder: max(file.stat().st_mtime for file in found[folder]), reverse=True)
    if newest:
        shown = ", ".join(map(str, newest[:SHOWN_RUNS])) + (", ..." if len(newest) > SHOWN_RUNS else "")
        held = plural(len(newest), "run")
        raise ValueError(f"{named}: no run itself, but a folder that holds {held}; name one (newest first): {shown}")


def _run_files(folder: Path) -> list[Path]:
    return [folder / name for name in RUN_FILES if (folder / name).exists()]


def _parser() -> argparse.ArgumentParser:
    from groundup import __version__

    parser = Parser(
        prog="groundup",
        allow_abbrev=False,
        description="Given this much compute and this data: the best language model you can build.",
        epilog="Each command has its own --help. Start with: groundup build --budget 10m",
    )
    parser.add_argument("--version", action="version", version=f"groundup {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND")
    for name, verb in VERBS.items():
        sub = verbs.add_parser(name, help=verb.summary, description=verb.summary, allow_abbrev=False)
        sub.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
        verb.options(sub)
    return parser


# build -----------------------------------------------------------------------------------------------------------


def _build_options(parser: Parser) -> None:
    add = parser.add_argument
    add("files", nargs="*", metavar="FILES|key=value", help="text to learn from (.txt .md .jsonl .parquet, folders; "
        "default: the bundled corpus), and settings, e.g. vocab_size=2048 d_model=256")  # fmt: skip
    add("--budget", default=None, help="wall-clock time for everything, e.g. 90s, 10m, 1.5h (default: 10m)")
    add("--out", help="run folder to create (default: a new one in runs/)")
    add("--resume", metavar="RUN", help="go on with an interrupted run")
    add("--dry-run", action="store_true", help="print the plan and stop")
    add("--json", action="store_true", help="end with one JSON line of results")
    add("--seed", type=whole_number, default=None, metavar="N",
        help="seed of split, initialisation and data order (default: 0)")  # fmt: skip
    add_device(parser)
    parser.more = _settings_help


def _settings_help() -> str:
    lines = settings_lines("groundup.build.settings", "BuildSettings", 25)
    return "\n".join(["settings, here with their defaults (null: the build chooses):", *lines])


def _build(options: Arguments) -> int:
    from groundup.build.settings import settings_from
    from groundup.config import separate_overrides

    files, overrides = separate_overrides(options.files)
    settings = settings_from(options.budget, options.seed, overrides)
    from groundup.build import build, resume

    # A stop from outside is answered like Ctrl-C: what is done is kept, and how to go on is said.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.resume:
        if files or overrides or options.budget or options.out or options.dry_run or options.seed is not None:
            raise ValueError("--resume goes on with the run's own settings: give nothing but the run folder")
        result = resume(options.resume, device=options.device, started=STARTED)
    else:
        result = build(
            files, settings, out=options.out, device=options.device, dry_run=options.dry_run, started=STARTED
        )
    if options.json:
        print_json(result)
    return 130 if result.get("stopped_by") == "interrupt" else 0


# eval ------------------------------------------------------------------------------------------------------------


def _eval_options(parser: Parser) -> None:
    add = parser.add_argument
    add("model", metavar="DIR", help="a finished run, or any model folder in Hugging Face layout")
    add("files", nargs="*", help="text to measure on (default: the run's own held-out text)")
    add("--text-field", metavar="NAME",
        help="field of .jsonl and .parquet records that holds the text (default: text, else content)")  # fmt: skip
    add("--context-length", type=whole_number, metavar="N", help="tokens in a window (default: the model's)")
    add("--stride", type=whole_number, metavar="N", help="new tokens per window (default: half the window)")
    add_device(parser)
    add("--json", action="store_true", help="end with one JSON line, which also says in words how it was measured")


def _eval(options: Arguments) -> int:
    from groundup.build.measure import evaluate_files

    result = evaluate_files(options.model, options.files, context_length=options.context_length,
                            stride=options.stride, device=options.device, text_field=options.text_field)  # fmt: skip
    size = f"{plural(result['bytes'], 'byte')} in {plural(result['documents'], 'document')}"
    print(f"{result['bits_per_byte']:.4f} bits per byte on {size}")
    if options.json:
        print_json(result)
    return 0


# report, bench ---------------------------------------------------------------------------------------------------


def _bench_options(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", help="the benchmark (none: list them)")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="its own options")


def _bench(options: Arguments) -> int:
    from groundup import bench

    return bench.run(options.name, options.rest)


VERBS = {
    "build": Verb("raw text and a time budget in; a trained, measured, chat-able model and its report out",
                  _build_options, _build),
    "train": Verb("pretrain a model of your own shape on your text, on one or several processes",
                  cli_train.options, cli_train.run),
    "plan": Verb("what a budget buys before anything is trained: here, or on accelerators elsewhere",
                 cli_plan.options, cli_plan.run),
    "generate": Verb("continue a prompt with a model", cli_generate.options, cli_generate.run),
    "chat": Verb("talk to a model in the terminal", cli_chat.options, cli_chat.run),
    "serve": Verb("an OpenAI-compatible server, with a page to talk to the model", cli_serve.options, cli_serve.run),
    "eval": Verb("bits per byte of a model on text", _eval_options, _eval),
    "tokenizer": Verb("train, use, compare, audit and convert tokenizers", cli_tokenizer.options, cli_tokenizer.run),
    "compress": Verb("quantise, prune and distil a model, and draw accuracy against speed and size",
                     cli_compress.options, cli_compress.run),
    "ablate": Verb("compare architectures at equal parameters, FLOPs or time, over seeds, with a verdict",
                   cli_ablate.options, cli_ablate.run),
    "history": Verb("the history of language models on one text: n-grams, neural n-gram, LSTM, Transformers",
                    cli_history.options, cli_history.run),
    "flops": Verb("the shares of attention, feed-forward layers and head in a model's FLOPs, over sizes and contexts",
                  cli_flops.options, cli_flops.run),
    "sweep": Verb("the best learning rate and the edge of stability of a small model, over seeds",
                  cli_sweep.options, cli_sweep.run),
    "recipe": Verb("runs that are written down, each to reproduce a public result on your copy of its text",
                   cli_recipe.options, cli_recipe.run),
    "profile": Verb("where the time of a step goes, against where its FLOPs are, and the bottleneck",
                    cli_profile.options, cli_profile.run),
    "import": Verb("bring in a model of Hugging Face, llama.cpp (GGUF) or llama2.c",
                   cli_model.import_options, cli_model.run_import),
    "export": Verb("write a model for transformers or llama.cpp (GGUF)",
                   cli_model.export_options, cli_model.run_export),
    "inspect": Verb("look into a checkpoint, a model, a run, a tensor's memory or the number types",
                    cli_inspect.options, cli_inspect.run),
    "report": Verb("write a run's report.html again, add it to the ledger, or measure what each decision saves",
                   cli_report.options, cli_report.run),
    "ledger": Verb("how near predictions came to measurements, over all runs of the ledger",
                   cli_ledger.options, cli_ledger.run),
    "bench": Verb("measure groundup against its peers", _bench_options, _bench),
    "doctor": Verb("measure what this machine can do, and say what to fix", cli_doctor.options, cli_doctor.run),
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
