"""`groundup history`: every kind of language model since Shannon on one text, in one unit, over seeds."""

import itertools
import json
import signal
import time
from typing import TYPE_CHECKING, Any

from groundup.cli_ablate import MATCHES
from groundup.cli_folder import refuse_beside_resume, stopped
from groundup.cli_parts import Arguments, Parser, add_device, print_json, print_table, say, settings_lines, whole_number
from groundup.config import declared, near, override, parse_seconds, separate_overrides

if TYPE_CHECKING:
    from groundup.scaling import AblationSettings, HistorySettings

CLASSES = ("HistorySettings", "AblationSettings")
CHANGED = {"match": "parameters"}
"""Defaults that are not those of an ablation."""
LEFT_OUT = ("lengths", "scalings")
"""Settings of an ablation that a history refuses."""


def options(parser: Parser) -> None:
    """The options of the verb."""
    add = parser.add_argument
    add("files", nargs="*", metavar="FILES|key=value", help="text to learn from (.txt .md .jsonl .parquet, folders; "
        "default: the bundled corpus), and settings, e.g. d_model=64 steps=300")  # fmt: skip
    add("--match", choices=MATCHES, help="what the trained rungs have equal besides their size (default: parameters: "
        "all see the same tokens)")  # fmt: skip
    add("--seeds", type=whole_number, metavar="N", help="runs of each trained rung (default: 3)")
    add("--budget", help="wall-clock time for everything, e.g. 90s, 10m, 1.5h (default: 10m)")
    add("--out", metavar="DIR", help="folder to create (default: a new one in runs/)")
    add("--resume", metavar="DIR", help="go on with an interrupted history")
    add("--dry-run", action="store_true", help="print the rungs and stop")
    add("--json", action="store_true", help="end with one JSON line of results")
    add_device(parser)
    parser.more = _more_help


def _more_help() -> str:
    each = (settings_lines("groundup.scaling.settings", name, changed=CHANGED, left_out=LEFT_OUT) for name in CLASSES)
    return "\n".join(["settings, here with their defaults:", *itertools.chain(*each)])


def run(options: Arguments) -> int:
    """Train and count every rung, write the folder, and print the tables; returns the exit code."""
    started = time.monotonic()
    from groundup.report.history import history_text, write_history_report
    from groundup.scaling import history, resume_history

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = options.resume
    try:
        if options.resume:
            refuse_beside_resume(options, ("files", "match", "seeds", "budget", "out", "dry_run"), "history")
            result = resume_history(folder, device=options.device, say=say)
        else:
            files, settings, training = _settings(options)
            rows = _plan(settings, training, options.dry_run)
            if options.dry_run:
                if options.json:
                    print_json({"match": training.match, "seeds": training.seeds, "rungs": rows})
                return 0
            folder = options.out or _fresh()
            result = history(
                files, settings, training, out=folder, device=options.device, say=say, started=started
            )  # fmt: skip
    except KeyboardInterrupt:
        return stopped("history", folder, "neural/config.json")
    page = write_history_report(folder)
    print(history_text(folder))
    print(f"\nreport  {page}")
    if options.json:
        print_json({**result, "run": str(folder)})
    return 0


def _settings(options: Arguments) -> tuple[list[str], "HistorySettings", "AblationSettings"]:
    """(files, settings, settings of training). ValueError for a setting that is unknown or given twice."""
    from groundup.scaling import AblationSettings, HistorySettings

    files, words = separate_overrides(options.files)
    own, training = (declared("groundup.scaling.settings", name)[0] for name in CLASSES)
    keys = [word.partition("=")[0] for word in words]
    if unknown := [key for key in keys if key not in own | training]:
        hint = near(unknown[0], own | training)
        raise ValueError(f"unknown setting {unknown[0]!r}{hint} (groundup history --help lists all)")
    budget = None if options.budget is None else parse_seconds(options.budget)
    if "steps" in keys and (budget is not None or "budget_seconds" in keys):
        raise ValueError("steps= and --budget both say how long a run is; give one of them")
    for key, value in {"match": options.match, "seeds": options.seeds, "budget_seconds": budget}.items():
        if value is not None and key in keys:
            raise ValueError(f"{key}= and its option are the same setting; give one of them")
        if value is not None:
            words.append(f"{key}={json.dumps(value)}")
    mine, theirs = ([w for w in words if w.partition("=")[0] in known] for known in (own, training))
    return files, override(HistorySettings(), *mine), override(AblationSettings(**CHANGED), *theirs)  # type: ignore[arg-type]


def _plan(settings: "HistorySettings", training: "AblationSettings", dry: bool) -> list[dict[str, Any]]:
    """Print what each rung will be, and for how long; nothing is read, timed or written."""
    from groundup.accounting import count_parameters, training_flops_per_token
    from groundup.scaling import RUNGS, neural_rungs

    trained = {variant.name: variant.config for variant in neural_rungs(training, settings.order)}
    rows: list[dict[str, Any]] = []
    for rung in RUNGS:
        config = trained.get(rung.name)
        parameters = None if config is None else count_parameters(config).total
        flops = None if config is None else training_flops_per_token(config, config.context_length)
        rows.append({"name": rung.name, "what": rung.what, "parameters": parameters, "flops_per_token": flops})
    if dry:
        lines = [[r["name"], f"{r['parameters']:,}" if r["parameters"] else "counted",
                  f"{r['flops_per_token']:,.0f}" if r["flops_per_token"] else "", r["what"]] for r in rows]  # fmt: skip
        headings = ("rung", "parameters", "training FLOPs per token", "what")
        print_table(f"{training.seeds} seeds, equal {training.match}", headings, lines, words=(0, 3))
    else:
        how = f"about {training.budget_seconds:,.0f} s" if training.steps is None else f"{training.steps:,} steps each"
        say(f"rungs: {', '.join(row['name'] for row in rows)}; {training.seeds} seeds, {how}")
    return rows


def _fresh() -> str:
    from groundup.files import fresh_path

    return str(fresh_path("history"))
