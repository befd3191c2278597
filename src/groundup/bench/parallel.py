"""`groundup bench parallel`: our DDP and FSDP beside torch's DistributedDataParallel and fully_shard.

Ranks are processes on this machine, with one thread each, connected by gloo. All four ways train the same model on the
same batches in the same processes, with the same fused AdamW, and have to have the same losses; then they take turns.
torch's are set as its own recipes say: gradients as views of buckets, and a unit per block.

Two sizes of batch: one where a step is mostly arithmetic, and one where it is mostly messages, in which a slow way has
nothing to hide behind. The record's `ratio` is the smallest of ours to torch's over both ways and both sizes.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from groundup.bench.measure import Rates
from groundup.bench.ranks import run_on_ranks
from groundup.bench.record import Record, load_average, print_table, save
from groundup.device import environment

SHAPE = {"vocab_size": 8192, "d_model": 256, "num_layers": 8, "num_heads": 4, "d_ff": 704, "context_length": 256}
"""10.6 million parameters."""

BATCHES = ((2, 256), (1, 64))
"""(rows, tokens in each) of a rank."""

COLUMNS = {
    "tokens": "tokens per rank", "way": "way", "rate": "tokens/s", "spread": "IQR", "ms": "ms per step",
    "ratio": "ours / torch's",
}  # fmt: skip


def table(found: Sequence[Mapping[str, Sequence[float]]], batches: Sequence[tuple[int, int]], ranks: int) -> list[dict]:
    """A row per batch and way, from the seconds of each turn's steps."""
    rows = []
    for (count, seq), ways in zip(batches, found, strict=True):
        rates = {way: Rates(tuple(ranks * count * seq / s for s in seconds)) for way, seconds in ways.items()}
        for way, rate in rates.items():
            peer = rates.get(way.replace("our", "torch")) if way.startswith("our") else None
            rows.append(
                {
                    "tokens": count * seq,
                    "way": way,
                    "rate": rate.median,
                    "spread": rate.spread,
                    "ms": 1e3 * ranks * count * seq / rate.median,
                    "ratio": rate.median / peer.median if peer else None,
                    "peer": peer.median if peer else None,
                }
            )
    return rows


def worst(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row in which ours is slowest beside torch's."""
    return min((row for row in rows if row["ratio"] is not None), key=lambda row: row["ratio"])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="groundup bench parallel", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9, help="how often each way has its turn (default 9)")
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn (default 3)")
    parser.add_argument("--layers", type=int, default=SHAPE["num_layers"], help="blocks of the model (default 8)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds after which a rank is given up")
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/parallel.json")
    options = parser.parse_args(argv)
    if options.ranks < 2 or options.rounds < 2 or min(options.steps, options.layers) < 1 or options.timeout <= 0:
        parser.error("--ranks and --rounds are at least 2, --steps and --layers at least 1, --timeout more than 0")
    return options


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    before = load_average()
    shape = SHAPE | {"num_layers": options.layers}
    given = {"shape": shape, "batches": BATCHES, "steps": options.steps}
    program = Path(__file__).with_name("parallel_program.py")
    answer = run_on_ranks(program, options.ranks, options.rounds, given, timeout=options.timeout)[0]
    rows = table(answer["measured"], BATCHES, options.ranks)
    title = f"{answer['parameters'] / 1e6:.1f} M parameters on {options.ranks} ranks of this machine (gloo, fp32)"
    print_table(title, rows, COLUMNS)
    least = worst(rows)
    record = Record(
        name="parallel",
        ours=least["rate"],
        peer=least["peer"],
        peer_name=least["way"].replace("our", "torch"),
        ratio=least["ratio"],
        unit="tokens/s",
        device="cpu",
        rows=rows,
        details={"shape": shape, "parameters": answer["parameters"], "ranks": options.ranks, "steps": options.steps}
        | {"batches": BATCHES, "seconds": answer["measured"]},
        load_average={"before": before, "after": load_average()},
        versions=environment()["versions"],
        environment=environment(),
    )
    if options.save:
        print(f"saved {save(record, 'parallel')}")
    print(record.line())
    return 0
