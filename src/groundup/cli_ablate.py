"""`groundup ablate`: which of several architectures is better at equal cost, over seeds, with a verdict."""

import json
import signal
import time
from typing import TYPE_CHECKING, Any

from groundup.cli_ablate_plan import apply_plan
from groundup.cli_folder import refuse_beside_resume, stopped
from groundup.cli_parts import Arguments, Parser, add_device, print_json, print_table, say, settings_lines, whole_number
from groundup.config import declared, near, override, parse_seconds, separate_overrides

if TYPE_CHECKING:
    from groundup.scaling import AblationSettings, Variant

MATCHES = ("parameters", "flops", "time")
BEGINNINGS = (
    "files", "variants", "variant", "ladder", "leave_one_out", "more", "match", "seeds", "budget", "plan", "out",
    "dry_run",
)  # fmt: skip
"""Options of a new comparison, and none of one that is gone on with."""


def options(parser: Parser) -> None:
    """The options of the verb."""
    add = parser.add_argument
    add("files", nargs="*", metavar="FILES|key=value", help="text to learn from (.txt .md .jsonl .parquet, folders; "
        "default: the bundled corpus), and settings, e.g. d_model=64 steps=300")  # fmt: skip
    add("--variants", metavar="A,B,C", help="named changes of the base, a small Llama (default: none; see below)")
    add("--variant", action="append", nargs="+", default=[], metavar="WORD",
        help="one of your own: NAME key=value ..., e.g. narrow blocks.0.mixer.d_head=8 (default: none)")  # fmt: skip
    add("--ladder", action="store_true", help="from the decoder of 2017 to Llama, one switch on top of the other")
    add("--leave-one-out", action="store_true", help="Llama with one switch at a time turned back to 2017")
    add("--more", default="", metavar="A,B", help="more rungs for the ladder: gqa, tied (default: none)")
    add("--match", choices=MATCHES, help="what all variants have equal (default: flops)")
    add("--seeds", type=whole_number, metavar="N", help="runs of each variant (default: 3)")
    add("--budget", help="wall-clock time for everything, e.g. 90s, 10m, 1.5h (default: 10m)")
    add("--plan", metavar="FILE", help="all of the above as one .toml or .json file (see docs/ablate.md)")
    add("--out", metavar="DIR", help="folder to create (default: a new one in runs/)")
    add("--resume", metavar="DIR", help="go on with an interrupted comparison")
    add("--dry-run", action="store_true", help="print what would be compared and stop")
    add("--json", action="store_true", help="end with one JSON line of results")
    add_device(parser)
    parser.more = _more_help


def _more_help() -> str:
    lines = settings_lines("groundup.scaling.settings", "AblationSettings")
    return "\n".join(["settings, here with their defaults:", *lines, "", "variants: see docs/ablate.md"])


def run(options: Arguments) -> int:
    """Compare, write the folder, and print the tables; returns the exit code."""
    started = time.monotonic()
    from groundup.report.ablation import ablation_text, write_ablation_report
    from groundup.scaling import ablate, resume

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = options.resume
    try:
        if options.resume:
            refuse_beside_resume(options, BEGINNINGS, "comparison")
            result = resume(folder, device=options.device, say=say)
        else:
            if options.plan:
                apply_plan(options, options.plan)
            files, settings = _settings(options)
            variants = _variants(options, settings)
            if options.dry_run:
                return _dry_run(variants, settings, options.json)
            folder = options.out or _fresh()
            result = ablate(
                files, variants, settings, out=folder, device=options.device, say=say, started=started
            )  # fmt: skip
    except KeyboardInterrupt:
        return stopped("ablate", folder)
    page = write_ablation_report(folder)
    print(ablation_text(folder))
    print(f"\nreport  {page}")
    if options.json:
        print_json({**_short(result), "run": str(folder)})
    return 0


def _short(result: dict[str, Any]) -> dict[str, Any]:
    """The result without the curves."""
    rows = [{k: v for k, v in row.items() if k not in ("losses", "gradient_norms")} for row in result["variants"]]
    return {**result, "variants": rows}


def _settings(options: Arguments) -> tuple[list[str], "AblationSettings"]:
    """(files, settings) of the command line. ValueError for a setting that is unknown or given twice."""
    from groundup.scaling import AblationSettings

    files, words = separate_overrides(options.files)
    known, _ = declared("groundup.scaling.settings", "AblationSettings")
    keys = [word.partition("=")[0] for word in words]
    if unknown := [key for key in keys if key not in known]:
        hint = near(unknown[0], known)
        raise ValueError(f"unknown setting {unknown[0]!r}{hint} (groundup ablate --help lists all)")
    budget = None if options.budget is None else parse_seconds(options.budget)
    if "steps" in keys and (budget is not None or "budget_seconds" in keys):
        raise ValueError("steps= and --budget both say how long a run is; give one of them")
    for key, value in {"match": options.match, "seeds": options.seeds, "budget_seconds": budget}.items():
        if value is not None and key in keys:
            raise ValueError(f"{key}= and its option are the same setting; give one of them")
        if value is not None:
            words.append(f"{key}={json.dumps(value)}")
    return files, override(AblationSettings(), *words)


def _variants(options: Arguments, settings: "AblationSettings") -> list["Variant"]:
    """The variants that were asked for, by exactly one of the three ways."""
    from groundup.scaling import ladder, leave_one_out, modern, named

    base, listed = modern(settings), bool(options.variants or options.variant)
    if options.ladder + options.leave_one_out + listed != 1:
        raise ValueError("give one of --ladder, --leave-one-out, or --variants and --variant")
    if options.more and not options.ladder:
        raise ValueError("--more adds rungs to the --ladder; give both, or name them in --variants")
    if options.ladder:
        return ladder(base, _words(options.more))
    if options.leave_one_out:
        return leave_one_out(base)
    return named(base, _words(options.variants or ""), [(name, keys) for name, *keys in options.variant])


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _fresh() -> str:
    from groundup.files import fresh_path

    return str(fresh_path("ablation"))


def _dry_run(variants: list["Variant"], settings: "AblationSettings", as_json: bool) -> int:
    """Print what each variant would be; nothing is read, timed or written."""
    from groundup.accounting import count_parameters, training_flops_per_token
    from groundup.scaling.ablation import check_variants
    from groundup.scaling.matching import matched_configs

    check_variants(variants, settings)
    configs = matched_configs(variants, settings)
    rows = [
        {"name": v.name, "against": v.against, "change": v.change, "parameters": count_parameters(c).total,
         "flops_per_token": training_flops_per_token(c, c.context_length)}
        for v, c in zip(variants, configs, strict=True)
    ]  # fmt: skip
    lines = [[r["name"], r["against"] or "", r["change"], f"{r['parameters']:,}", f"{r['flops_per_token']:,.0f}"]
             for r in rows]  # fmt: skip
    headings = ("variant", "against", "change", "parameters", "training FLOPs per token")
    print_table(f"Equal {settings.match}, {settings.seeds} seeds", headings, lines, words=(0, 1, 2))
    if as_json:
        print_json({"match": settings.match, "seeds": settings.seeds, "variants": rows})
    return 0
