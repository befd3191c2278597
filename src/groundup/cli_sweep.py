"""`groundup sweep lr`: the best learning rate of a small model and the edge of stability, over seeds."""

import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from groundup.cli_folder import refuse_beside_resume, stopped
from groundup.cli_parts import Arguments, Parser, add_device, print_json, say, settings_lines, whole_number, wrong_use
from groundup.config import declared, near, override, parse_seconds, separate_overrides

if TYPE_CHECKING:
    from groundup.scaling import SweepSettings

WHAT = ("lr",)
OPTIMIZERS = (
    "adamw", "muon_adamw", "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "lion", "adafactor", "soap",
)  # fmt: skip


def options(parser: Parser) -> None:
    """The options of the verb."""
    add = parser.add_argument
    add("what", metavar="lr", help="what is swept: lr, learning rates")
    add("files", nargs="*", metavar="FILES|key=value", help="text to learn from (.txt .md .jsonl .parquet, folders; "
        "default: the bundled corpus), and settings, e.g. d_model=64 low=0.001 'batch_sizes=[8,16]'")  # fmt: skip
    add("--optimizer", choices=OPTIMIZERS, help="what updates the weights (default: adamw)")
    add("--seeds", type=whole_number, metavar="N", help="runs at each rate (default: 3)")
    add("--budget", help="wall-clock time for everything, e.g. 90s, 10m, 1.5h (default: 10m)")
    add("--workers", type=whole_number, metavar="N", help="runs side by side (default: one for each seed, as far as "
        "the cores go; 1 on a GPU)")  # fmt: skip
    add("--out", metavar="DIR", help="folder to create (default: a new one in runs/)")
    add("--resume", metavar="DIR", help="go on with an interrupted sweep")
    add("--dry-run", action="store_true", help="print what would be tried and stop")
    add("--json", action="store_true", help="end with one JSON line of results")
    add_device(parser)
    parser.more = _more_help


def _more_help() -> str:
    return "\n".join(["settings, here with their defaults:", *settings_lines("groundup.scaling.sweep_settings",
                      "SweepSettings")])  # fmt: skip


def run(options: Arguments) -> int:
    """Sweep, write the folder, and print the table; returns the exit code."""
    started = time.monotonic()
    if options.what not in WHAT:
        wrong_use("groundup sweep", f"cannot sweep {options.what!r}; what it can is: {', '.join(WHAT)}")
    from groundup.report.sweep import sweep_text, write_sweep_report
    from groundup.scaling import resume_sweep, sweep_lr

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = options.resume
    try:
        if options.resume:
            refuse_beside_resume(options, ("files", "optimizer", "seeds", "budget", "out", "dry_run"), "sweep")
            result = resume_sweep(folder, device=options.device, at_once=_workers(options, _seeds(folder)), say=say)
        else:
            files, settings = _settings(options)
            if options.dry_run:
                return _dry_run(settings, options.json)
            folder = options.out or _fresh()
            result = sweep_lr(files, settings, out=folder, device=options.device,
                              at_once=_workers(options, settings.seeds), say=say, started=started)  # fmt: skip
    except KeyboardInterrupt:
        return stopped("sweep lr", folder)
    page = write_sweep_report(folder)
    print(sweep_text(folder))
    print(f"\nreport  {page}")
    if options.json:
        print_json({**result, "run": str(folder)})
    return 0


def _workers(options: Arguments, seeds: int) -> int:
    """Runs side by side."""
    from groundup.device import default_device, physical_cores, require_device

    if options.workers is not None:
        if options.workers < 1:
            raise ValueError(f"--workers {options.workers}: must be at least 1")
        return options.workers
    device = require_device(options.device) if options.device else default_device()
    return min(seeds, physical_cores()) if device.type == "cpu" else 1


def _seeds(folder: str) -> int:
    """As many as the sweep began with; what is no sweep is refused later."""
    from groundup.files import read_json
    from groundup.scaling import is_sweep

    return read_json(Path(folder) / "config.json")["sweep"]["seeds"] if is_sweep(folder) else 1


def _settings(options: Arguments) -> tuple[list[str], "SweepSettings"]:
    """(files, settings) of the command line. ValueError for a setting that is unknown or given twice."""
    from groundup.scaling import SweepSettings

    files, words = separate_overrides(options.files)
    known, _ = declared("groundup.scaling.sweep_settings", "SweepSettings")
    keys = [word.partition("=")[0] for word in words]
    if unknown := [key for key in keys if key not in known]:
        hint = near(unknown[0], known)
        raise ValueError(f"unknown setting {unknown[0]!r}{hint} (groundup sweep --help lists all)")
    budget = None if options.budget is None else parse_seconds(options.budget)
    if budget is not None and "steps" in keys:
        raise ValueError("steps= and --budget both say how long a run is; give one of them")
    given = {"optimizer": options.optimizer, "seeds": options.seeds, "budget_seconds": budget}
    for key, value in given.items():
        if value is not None and key in keys:
            raise ValueError(f"{key}= and its option are the same setting; give one of them")
        if value is not None:
            words.append(f"{key}={json.dumps(value)}")
    return files, override(SweepSettings(), *words)


def _fresh() -> str:
    from groundup.files import fresh_path

    return str(fresh_path("sweep"))


def _dry_run(settings: "SweepSettings", as_json: bool) -> int:
    """Print what would be tried; nothing is read, timed or written."""
    from groundup.accounting import count_parameters
    from groundup.scaling.sweep_search import cells, most_runs
    from groundup.scaling.variants import modern

    parameters = count_parameters(modern(settings.training(settings.batch_sizes[0]))).total
    shown = [f"batch {cell.batch_size}, weight decay {cell.weight_decay:g}" for cell in cells(settings)]
    print(f"a model of {parameters:,} parameters, {settings.optimizer}, {settings.seeds} seeds, about "
          f"{most_runs(settings)} runs")  # fmt: skip
    print(f"rates   {', '.join(f'{rate:g}' for rate in settings.grid)}, then up to the edge")
    print(f"with    {'; '.join(shown)}")
    if as_json:
        print_json({"parameters": parameters, "optimizer": settings.optimizer, "seeds": settings.seeds,
                    "rates": settings.grid, "cells": shown, "runs": most_runs(settings)})  # fmt: skip
    return 0
