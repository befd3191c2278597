"""`groundup report`: a run's page again, its place in the ledger, or what each decision saves."""

from groundup import cli_ledger, cli_why
from groundup.cli_parts import Arguments, Parser, number, wrong_use


def options(parser: Parser) -> None:
    """The options of the verb."""
    add = parser.add_argument
    add("run_folders", nargs="*", metavar="RUN", help="run folders, finished or not")
    cli_ledger.add_option(parser)
    add("--why", action="store_true", help="instead: measure what each efficiency decision saves on this machine")
    add("--seconds", type=number, metavar="X", help="with --why: how long to measure (default: 20)")
    add("--html", metavar="FILE", help="with --why: also write a page of the table and its chart")
    add("--json", action="store_true", help="with --why: end with one JSON line of the rows")


def run(options: Arguments) -> int:
    """Write the reports, or measure; returns the exit code."""
    if options.why:
        if options.run_folders or options.ledger is not None:
            extra = options.run_folders[0] if options.run_folders else "--ledger"
            raise ValueError(f"--why measures this machine and reads no run: leave out {extra}")
        return cli_why.run(options.seconds, options.json, options.html)
    if options.seconds is not None or options.json or options.html is not None:
        raise ValueError("--seconds, --html and --json belong to --why")
    if not options.run_folders:
        wrong_use("groundup report", "the following arguments are required: RUN")
    from groundup.report import write_report
    from groundup.report.ablation import is_ablation, write_ablation_report
    from groundup.report.history import write_history_report
    from groundup.report.sweep import write_sweep_report
    from groundup.scaling import is_history, is_sweep

    for folder in options.run_folders:
        write = write_ablation_report if is_ablation(folder) else write_report
        write = write_history_report if is_history(folder) else write
        write = write_sweep_report if is_sweep(folder) else write
        print(write(folder))
    if options.ledger is not None:
        cli_ledger.add_runs(options.run_folders, options.ledger)
    return 0
