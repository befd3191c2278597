"""`groundup bench pipeline`: the bubble of each schedule as measured, beside the formula and the simulator.

    formula     (p - 1) / (v m + p - 1)     p ranks, m micro-batches, v chunks per rank; all stages take equally long
    simulated   `parallel.simulate` of the schedule, with the times that each stage and a message were seen to take
    measured    the share of time in which the ranks ran no pass, of real ranks that send real messages

Ranks are processes on this machine, of one thread each. Two kinds of stages: some wait (they sleep, twice as long
backward as forward, and hand on a few numbers), so that any number of ranks is idle or busy as it would be on as many
devices; and some compute, which says something only where every rank has a core of its own, and is left out elsewhere:
ranks that share cores slow each other, and what one computes while another is idle is lost to no one.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from groundup.bench.ranks import run_on_ranks
from groundup.bench.record import Record, load_average, print_table, save
from groundup.device import environment, physical_cores
from groundup.parallel import bubble_fraction, schedule, simulate

SCHEDULES = (("gpipe", 1), ("1f1b", 1), ("interleaved", 2))
COLUMNS = {
    "ranks": "ranks", "stages": "stages", "schedule": "schedule", "microbatches": "micro-batches",
    "measured": "measured", "spread": "min to max", "formula": "formula", "simulated": "simulated",
    "transfer_ms": "ms of a message",
    "points": "points off",
}  # fmt: skip


def cases(ranks: int, microbatches: Sequence[int], cores: int) -> list[tuple[str, str, int, int]]:
    """(kind of stage, schedule, micro-batches, chunks), without those that the schedule or the machine cannot run."""
    kinds = ["waits", "computes"] if cores >= ranks else ["waits"]
    return [
        (kind, name, count, virtual)
        for kind in kinds
        for name, virtual in SCHEDULES
        for count in microbatches
        if virtual == 1 or count % ranks == 0
    ]


def row(ranks: int, case: tuple[str, str, int, int], found: dict[str, Any]) -> dict[str, Any]:
    """A line of the table; `points` are hundredths between the measured median and the formula."""
    kind, name, microbatches, virtual = case
    plan = [schedule(name, ranks, microbatches, rank, virtual) for rank in range(ranks)]
    measured, formula = statistics.median(found["bubbles"]), bubble_fraction(ranks, microbatches, virtual)
    return {
        "ranks": ranks,
        "stages": kind,
        "schedule": name,
        "microbatches": microbatches,
        "measured": measured,
        "spread": f"{min(found['bubbles']):.3f} to {max(found['bubbles']):.3f}",
        "formula": formula,
        "simulated": simulate(plan, found["forward"], found["backward"], found["transfer"]).bubble,
        "transfer_ms": 1e3 * found["transfer"],
        "points": 100 * (measured - formula),
        "bubbles": found["bubbles"],
    }


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="groundup bench pipeline", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--microbatches", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each case (default 5)")
    parser.add_argument("--seconds", type=float, default=0.02, help="forward pass of a rank that waits (default 0.02)")
    parser.add_argument("--layers", type=int, default=16, help="linear layers of a rank that computes (default 16)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds after which a rank is given up")
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/pipeline.json")
    options = parser.parse_args(argv)
    if min(options.ranks) < 2 or min(options.microbatches) < 1 or options.steps < 1 or options.seconds <= 0:
        parser.error("--ranks are at least 2, --microbatches and --steps at least 1, --seconds more than 0")
    if options.layers < 2 or options.layers % 2:
        parser.error("--layers is even, so that they can be two chunks")
    return options


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    before, rows = load_average(), []
    program = Path(__file__).with_name("pipeline_program.py")
    for ranks in options.ranks:
        todo = cases(ranks, options.microbatches, physical_cores())
        given = {"cases": todo, "seconds": options.seconds, "layers": options.layers}
        answer = run_on_ranks(program, ranks, options.steps, given, timeout=options.timeout)[0]
        rows += [row(ranks, case, found) for case, found in zip(todo, answer["measured"], strict=True)]
    print_table("share of time in which ranks run nothing (gloo, this machine)", rows, COLUMNS)
    record = Record(
        name="pipeline",
        ours=max(abs(each["points"]) for each in rows),
        peer=None,
        peer_name=None,
        ratio=None,
        unit="points between measured bubble and formula, at most",
        device="cpu",
        rows=rows,
        details={"steps": options.steps, "seconds": options.seconds, "layers": options.layers},
        load_average={"before": before, "after": load_average()},
        versions=environment()["versions"],
        environment=environment(),
    )
    if options.save:
        print(f"saved {save(record, 'pipeline')}")
    print(record.line())
    return 0
