"""The options and the course of a tokenizer benchmark, whatever it measures."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from groundup.bench.record import load_average, save
from groundup.bench.tokenizer_corpus import Corpus, prepare_corpus
from groundup.bench.tokenizer_race import OURS, Cell, Races
from groundup.bench.tokenizer_record import compare, print_tables
from groundup.config import plural
from groundup.device import physical_cores


def arguments(name: str, doc: str | None, argv: Sequence[str], *, seconds: float) -> argparse.Namespace:
    """The options that these benchmarks have in common. --quick replaces the sizes, not what was named."""
    parser = argparse.ArgumentParser(prog=f"groundup bench {name}", description=doc)
    parser.add_argument(
        "--text",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="the text: .txt, .jsonl and whatever else groundup reads (default: the bundled text, at its own size)",
    )
    parser.add_argument("--megabytes", type=float, help="of the text, from its beginning (default 100; --quick: 0.2)")
    parser.add_argument("--threads", nargs="+", type=int, help="numbers of threads (default: 1 and all cores)")
    parser.add_argument(
        "--seconds", type=float, help=f"of measuring, all together; every program has three turns (default {seconds:g})"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small text for a short time: a trial, not a measurement"
    )
    parser.add_argument("--save", action="store_true", help=f"write benchmarks/results/{name}.json")
    options = parser.parse_args(argv)
    if options.quick and options.save:
        parser.error("--save keeps measurements, and --quick makes none")
    cores = sorted({1, physical_cores()})
    options.threads = sorted(set(options.threads or (cores[:1] if options.quick else cores)))
    if min(options.threads) < 1:
        parser.error(f"--threads: {min(options.threads)} is not a number of threads")
    options.megabytes = options.megabytes or (0.2 if options.quick else 100.0)
    options.turn_seconds = 0.02 if options.quick else 0.5
    options.seconds = (0.0 if options.quick else seconds) if options.seconds is None else options.seconds
    return options


Plan = Callable[[argparse.Namespace, Corpus, Path], tuple[list[Cell], Cell, dict[str, Any]]]


def run(name: str, options: argparse.Namespace, plan: Plan) -> int:
    """A whole benchmark: the text, the cells that `plan` makes of it, the table, and the record's line last.

    `plan` gets the options, the corpus and a folder for its files; it gives the cells, that of the headline, and
    details for the record.
    """
    load_before = load_average()
    with tempfile.TemporaryDirectory(prefix="groundup-bench-") as temporary:
        folder = Path(temporary)
        corpus = prepare_corpus(options.text, folder, options.megabytes)
        print(f"{name}: {corpus.source}: {corpus.whole}, {plural(corpus.whole.documents, 'document')}", flush=True)
        cells, headline, details = plan(options, corpus, folder)
        outcomes = Races(folder, options.seconds, options.turn_seconds).run(cells)
    if not any(outcome.cell is headline and outcome.best(OURS) for outcome in outcomes):
        reasons = {e.failure for o in outcomes for e in o.entries if e.setting.program == OURS and e.failure}
        print(f"groundup bench {name}: groundup did not run: {'; '.join(sorted(reasons))}", file=sys.stderr)
        return 1
    record = compare(name, outcomes, headline, {"corpus": corpus.facts, "quick": options.quick, **details})
    record.load_average = {"before": load_before, "after": load_average()}
    print(f"{name} on {record.device}, medians of turns")
    print_tables(record)
    if options.save:
        print(f"saved {save(record, name)}")
    print(record.line(), flush=True)
    return 0
