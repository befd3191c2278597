"""`groundup ledger`: how near the planner's predictions came, over all runs that `report --ledger` has added."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from groundup.cli_parts import Arguments, Parser, count, print_json

HERE = "benchmarks/results/ledger.json of the checkout"


def options(parser: Parser) -> None:
    """The options of the verb."""
    add = parser.add_argument
    add("file", nargs="?", metavar="FILE", help=f"the ledger (default: {HERE})")
    add("--last", type=count, default=20, metavar="N", help="most runs to list (default: %(default)s)")
    add("--json", action="store_true", help="print one JSON object instead of tables")


def add_option(parser: Parser) -> None:
    """The option of `groundup report` that adds runs to a ledger."""
    parser.add_argument("--ledger", nargs="?", const="", metavar="FILE",
                        help=f"add the runs to this ledger (default: none; without FILE: {HERE})")  # fmt: skip


def run(options: Arguments) -> int:
    """Show the errors by quantity, then the newest runs; returns the exit code."""
    from groundup.accounting.run_ledger import Ledger
    from groundup.report.ledger import accuracy_table, entry_table
    from groundup.report.tables import to_text

    path = ledger_path(options.file)
    if not path.exists():
        raise ValueError(f"{path}: no such ledger; groundup report RUN --ledger {path} begins one")
    ledger = Ledger.read(path)
    shown = ledger.entries[max(0, len(ledger.entries) - options.last) :]
    if options.json:
        accuracies = [asdict(found) for found in ledger.accuracies()]
        print_json({"file": str(path), "accuracies": accuracies, "entries": [asdict(entry) for entry in shown]})
        return 0
    print("\n\n".join(to_text(table) for table in (accuracy_table(ledger), entry_table(shown)) if table))
    if not ledger.entries:
        print(f"{path}: no runs in it yet")
    return 0


def add_runs(folders: Sequence[str], file: str) -> None:
    """Add finished runs to a ledger, all or none of them."""
    from groundup.accounting.run_ledger import add_to
    from groundup.report.ledger import entries_of

    path = ledger_path(file)
    ledger = add_to(path, [entry for folder in folders for entry in entries_of(folder)])
    print(f"{path}: {len(ledger.entries):,} {'entry' if len(ledger.entries) == 1 else 'entries'}")


def ledger_path(file: str | None) -> Path:
    """The file that was named, else the checkout's. ValueError where there is neither."""
    from groundup.bench.record import checkout

    if file:
        return Path(file)
    if (root := checkout()) is None:
        raise ValueError("name the ledger's file: this is an installed package, without a checkout that has one")
    return root / "benchmarks" / "results" / "ledger.json"
