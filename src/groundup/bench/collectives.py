"""`groundup bench collectives`: our all-reduces beside torch.distributed's, and the alpha-beta model of both.

Ranks are processes on this machine, connected by gloo. A collective that sends k messages after each other, of w bytes
together, is predicted to take

    seconds = alpha k + beta w        alpha: latency of a message;  1 / beta: bytes per second

(Hockney 1994, "The communication challenge for MPP"). Alpha and beta are fitted per algorithm, over all sizes, with
equal weight to each size's relative error; the table shows what they predict beside what was measured. Where the two
disagree, the machine does something that the model does not know: caches, or a protocol that changes with the size.

    all-reduce of S bytes on n ranks     k                  w
    ring, and torch's                    2 (n - 1)          2 (n - 1) / n S
    rank order                           2                  2 (n - 1) / n S
    tree                                 2 ceil(log2 n)     2 ceil(log2 n) S
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groundup.bench.measure import Rates
from groundup.bench.ranks import run_on_ranks
from groundup.bench.record import Record, load_average, print_table, save
from groundup.device import environment

SIZES = [4 * 16**power for power in range(6)] + [16 << 20, 64 << 20]
"""Bytes: 4, 64, 1 KiB, 16 KiB, 256 KiB, 4 MiB, 16 MiB, 64 MiB."""

PEER = "torch"
COLUMNS = {
    "bytes": "bytes", "way": "all-reduce", "ms": "ms measured", "spread_ms": "IQR", "fitted_ms": "ms fitted",
    "ratio": "torch's / ours",
}  # fmt: skip


def messages(way: str, ranks: int) -> int:
    """How many messages a rank waits for, one after the other."""
    return {"tree": 2 * (ranks - 1).bit_length(), "rank order": 2}.get(way, 2 * (ranks - 1))


def wire_bytes(way: str, ranks: int, size: int) -> float:
    """How many bytes those are."""
    return 2.0 * (ranks - 1).bit_length() * size if way == "tree" else 2 * (ranks - 1) / ranks * size


def fit(points: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """(alpha, beta), both at least 0, for points (messages, bytes, seconds): least squares of the relative errors.

    >>> alpha, beta = fit([(2, 0, 2e-4), (2, 1e6, 2e-4 + 1e-3)])
    >>> round(alpha, 6), round(beta, 12)
    (0.0001, 1e-09)
    """
    rows = np.array([[k / seconds, w / seconds] for k, w, seconds in points])
    both, *_ = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)
    if min(both) >= 0:
        return float(both[0]), float(both[1])
    # One of the two alone: a column's own least squares are (a . 1) / (a . a).
    alone = [column.sum() / (column @ column) if column.any() else 0.0 for column in rows.T]
    errors = [np.square(rows[:, i] * alone[i] - 1).sum() for i in range(2)]
    return (float(alone[0]), 0.0) if errors[0] <= errors[1] else (0.0, float(alone[1]))


def measure(options: argparse.Namespace, sizes: Sequence[int]) -> dict[int, dict[str, Rates]]:
    """Per size and way, the seconds of each round."""
    program = Path(__file__).with_name("collectives_program.py")
    answers = run_on_ranks(program, options.ranks, options.rounds, {"sizes": list(sizes)}, timeout=options.timeout)
    found = answers[0]["measured"]
    return {
        size: {way: Rates(tuple(values)) for way, values in ways.items()}
        for size, ways in zip(sizes, found, strict=True)
    }


def table(found: Mapping[int, Mapping[str, Rates]], ranks: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of size and way, and (alpha, beta) by way."""
    fits = {
        way: fit([(messages(way, ranks), wire_bytes(way, ranks, s), found[s][way].median) for s in found])
        for way in next(iter(found.values()))
    }
    rows = []
    for size, ways in found.items():
        for way, seconds in ways.items():
            alpha, beta = fits[way]
            predicted = alpha * messages(way, ranks) + beta * wire_bytes(way, ranks, size)
            rows.append(
                {
                    "bytes": size,
                    "way": way,
                    "ms": 1e3 * seconds.median,
                    "spread_ms": 1e3 * seconds.spread,
                    "fitted_ms": 1e3 * predicted,
                    "ratio": None if way == PEER else ways[PEER].median / seconds.median,
                }
            )
    return rows, {way: {"alpha_seconds": a, "beta_seconds_per_byte": b} for way, (a, b) in fits.items()}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="groundup bench collectives", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15, help="how often each all-reduce has its turn (default 15)")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="bytes of the largest tensor")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds after which a rank is given up")
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/collectives.json")
    options = parser.parse_args(argv)
    if options.ranks < 2 or options.rounds < 2 or options.largest < SIZES[1] or options.timeout <= 0:
        parser.error(f"--ranks and --rounds are at least 2, --largest at least {SIZES[1]}, --timeout more than 0")
    return options


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    before = load_average()
    found = measure(options, [size for size in SIZES if size <= options.largest])
    rows, fits = table(found, options.ranks)
    print_table(f"all-reduce on {options.ranks} ranks of this machine (gloo, fp32)", rows, COLUMNS)
    for way, said in fits.items():
        speed = f"{1e-9 / said['beta_seconds_per_byte']:.2f} GB/s" if said["beta_seconds_per_byte"] else "no bytes"
        print(f"{way:<10} alpha {1e6 * said['alpha_seconds']:.0f} us per message, 1 / beta {speed}")
    largest = max(found)
    ratios = [found[size][PEER].median / found[size]["ring"].median for size in found]
    record = Record(
        name="collectives",
        ours=1e3 * found[largest]["ring"].median,
        peer=1e3 * found[largest][PEER].median,
        peer_name="torch.distributed",
        ratio=ratios[-1],
        unit=f"ms of an all-reduce of {largest:,} bytes",
        device="cpu",
        rows=rows,
        details={"ranks": options.ranks, "rounds": options.rounds, "fits": fits}
        | {"geometric_mean_ratio": statistics.geometric_mean(ratios)},
        load_average={"before": before, "after": load_average()},
        versions=environment()["versions"],
        environment=environment(),
    )
    if options.save:
        save(record, "collectives")
    print(record.line())
    return 0
