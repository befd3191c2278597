"""`groundup compress`: what quantisation, pruning and distillation make of a model, in accuracy, size and speed."""

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from groundup.cli_folder import INTERRUPTED
from groundup.cli_parts import (
    Arguments,
    Parser,
    add_device,
    print_json,
    print_table,
    progress_line,
    say,
    settings_lines,
)
from groundup.config import declared, near, override

if TYPE_CHECKING:
    from groundup.compression.settings import CompressSettings

EXAMPLES = """methods: int8, int4, fp8 (weights); kv-int8, kv-fp8 (keys and values); 2:4 (two of four weights zero);
magnitude-50, wanda-50 (per cent of zeros); narrow-75, shallow-75 (per cent of channels or layers that stay, then
trained); distilled-50 (of the layers, then taught by the model)"""


def options(parser: Parser) -> None:
    """The options of the verb."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="a finished run, a model folder in Hugging Face layout, or a .gguf file")
    add("files", nargs="*", metavar="key=value", help="settings, e.g. heal_steps=100 (see below)")
    add("--methods", metavar="A,B,C", help="variants beside the baselines fp32 and bf16 (default: all but distilled)")
    add("--text", action="append", default=[], metavar="FILE", help="text to calibrate, heal and score on; may be "
        "repeated (default: what the run held out, or else the bundled text)")  # fmt: skip
    add("--out", metavar="DIR", help="folder to create, or to go on with (default: a new one in runs/)")
    add("--logits", metavar="DIR", help="distilled variants learn from the model's top_k logits in this folder, "
        "which are written first where they are not all there (default: the model runs beside them)")  # fmt: skip
    add("--dry-run", action="store_true", help="print what would be compared and stop")
    add("--json", action="store_true", help="end with one JSON line of results")
    add_device(parser)
    parser.more = _more_help


def _more_help() -> str:
    lines = settings_lines("groundup.compression.settings", "CompressSettings", left_out=("methods",))
    return "\n".join([EXAMPLES, "", "settings, here with their defaults:", *lines])


def run(options: Arguments) -> int:
    """Compare, write the folder, and print the table; returns the exit code."""
    settings = _settings(options)
    if options.dry_run:
        print_table("Would compare", ("variant",), [[name] for name in settings.names])
        if options.json:
            print_json({"model": options.model, "variants": list(settings.names)})
        return 0
    from groundup.compression.frontier import compress
    from groundup.device import default_device, require_device
    from groundup.files import fresh_path
    from groundup.report.compression import compression_text, write_compression_report

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    device = require_device(options.device) if options.device else default_device()
    folder = options.out or str(fresh_path("compression"))
    try:
        with progress_line() as progress:
            result = compress(options.model, options.text, settings, out=folder, logits=options.logits, device=device,
                              say=say, progress=progress)  # fmt: skip
    except KeyboardInterrupt:
        say(f"stopped; finished variants are kept: the same command goes on with --out {folder}")
        return INTERRUPTED
    page = write_compression_report(folder)
    print(compression_text(folder))
    print(f"\nreport  {page}\nmodels  {Path(folder) / 'variants'}")
    if options.json:
        print_json({**result, "out": str(folder)})
    return 0


def _settings(options: Arguments) -> "CompressSettings":
    """Of the command line. ValueError for a word that is no setting."""
    from groundup.compression.settings import CompressSettings

    known, _ = declared("groundup.compression.settings", "CompressSettings")
    for word in options.files:
        key, equals, _ = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r}: expected key=value; text is named with --text")
        if key not in known:
            raise ValueError(f"unknown setting {key!r}{near(key, known)} (groundup compress --help lists all)")
    words = list(options.files)
    if options.methods is not None:
        methods = [word.strip() for word in options.methods.split(",") if word.strip()]
        words.append(f"methods={json.dumps(methods)}")
    return override(CompressSettings(), *words)
