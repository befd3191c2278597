"""`groundup bench shakespeare`: three minutes on a CPU, character by character, beside nanoGPT's recipe for them.

Both are given the same file, the same first 90 % of it to train on, and the same seconds, which begin before the file
is read and end with the last update: compiling counts, and every run has an empty compiler cache. Then the last 10 %
are scored, each character once.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from groundup.bench.measure import Rates
from groundup.bench.race import Program
from groundup.bench.record import Record, checkout, load_average, print_table, save
from groundup.bench.worker import WorkerFailed
from groundup.config import override, plural
from groundup.environ import env
from groundup.files import sha256
from groundup.recipes import RECIPES

OURS, PEER = "groundup", "nanoGPT's CPU recipe"
RECIPE = "tinyshakespeare-cpu"
TEXT = Path("pretrain") / "tinyshakespeare.txt"
CHARACTERS = 1_115_394
SECONDS, THREADS = 180.0, 2
# Beyond the clock: imports, and the evaluation, which a busy machine makes long.
PATIENCE = 900.0
COLUMNS = {
    "program": "program",
    "seed": "seed",
    "loss": "nats/character",
    "sliding": "sliding",
    "context": "context",
    "seconds": "seconds",
    "steps": "updates",
    "tokens": "characters read",
    "parameters": "parameters",
    "note": "",
}


def programs() -> dict[str, Program]:
    root = checkout()
    peer = root / "benchmarks" / "peers" / "shakespeare_nanogpt.py" if root else None
    return {
        OURS: Program(Path(__file__).with_name("shakespeare_program.py"), "groundup"),
        PEER: Program(peer, "torch"),
    }


def find_text(named: str | None) -> Path:
    """The file that `--text` names, else where data for development lies. ValueError that says how to give it."""
    if named is not None:
        if not Path(named).is_file():
            raise ValueError(f"--text {named}: no such file")
        return Path(named)
    root = checkout()
    folders = [Path(folder) for folder in (env("GROUNDUP_DATA"), root and root.parent / "shared" / "data") if folder]
    for folder in folders:
        if (folder / TEXT).is_file():
            return folder / TEXT
    raise ValueError(
        f"tinyshakespeare (input.txt, {CHARACTERS:,} characters) does not come with groundup: give it with "
        f"--text FILE, or set GROUNDUP_DATA to a folder that has {TEXT.as_posix()}"
    )


def measure(program: Program, options: dict[str, Any]) -> dict[str, Any]:
    """One training in a process of its own, with an empty compiler cache: facts and results, or a `failure`."""
    if program.absence:
        return {"failure": program.absence}
    # The compiler fills this folder, and not the user's, in which an earlier run has left its work.
    with tempfile.TemporaryDirectory() as cache:
        options = {**options, "compiler_cache": cache}
        try:
            with program.start(options, timeout=options["seconds"] + PATIENCE) as worker:
                return {**worker.facts, **worker.run(1)}
        except WorkerFailed as error:
            return {"failure": str(error)}


def table(measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per run."""
    return [
        {
            "program": m["program"],
            "seed": m["seed"],
            "loss": m.get("loss"),
            "sliding": m.get("loss_sliding"),
            "context": m.get("context_length"),
            "seconds": m.get("train_seconds"),
            "steps": m.get("steps"),
            "tokens": m.get("tokens"),
            "parameters": m.get("parameters"),
            "note": m.get("failure", ""),
        }
        for m in measured
    ]


def losses(measured: Sequence[dict[str, Any]], program: str) -> Rates | None:
    """The losses of a program's seeds, None where no run of it ended."""
    values = tuple(m["loss"] for m in measured if m["program"] == program and "loss" in m)
    return Rates(values) if values else None


def compare(measured: Sequence[dict[str, Any]], text: Path, seconds: float) -> Record:
    """The record of all runs: medians over seeds; `ratio` is the peer's loss over ours."""
    ours, peer = losses(measured, OURS), losses(measured, PEER)
    assert ours is not None
    facts = next(m for m in measured if m["program"] == OURS and "loss" in m)
    return Record(
        name="shakespeare",
        ours=ours.median,
        peer=peer.median if peer else None,
        peer_name=PEER if peer else None,
        ratio=peer.median / ours.median if peer else None,
        unit="nats per character",
        device=facts["environment"]["device"],
        rows=table(measured),
        details=_details(measured, facts, text, seconds),
        versions={k: v for m in measured for k, v in m.get("versions", {}).items()},
        environment=facts["environment"],
    )


def _details(measured: Sequence[dict[str, Any]], facts: dict[str, Any], text: Path, seconds: float) -> dict[str, Any]:
    """How it was measured, and every program's loss of every seed; `facts` are those of one run of ours."""
    ended = [m for m in measured if "loss" in m]
    by_program = {}
    for name in dict.fromkeys(m["program"] for m in ended):
        of_name = [m["loss"] for m in ended if m["program"] == name]
        by_program[name] = {
            "losses": of_name,
            "range": [min(of_name), max(of_name)],
            "sliding": [m["loss_sliding"] for m in ended if m["program"] == name],
        }
    return {
        "protocol": "first 90 % of the characters to train on; the loss is the mean over all characters of the last "
        "10 %, each predicted once, in windows of the context that share no target",
        "seconds": seconds,
        "recipe": RECIPE,
        "text": {"file": text.name, "sha256": sha256(text), "validation_characters": facts["validation_characters"]},
        "compiler_cache": "empty",
        "context": {m["program"]: m["context_length"] for m in ended},
        "threads": {m["program"]: m["threads"] for m in ended},
        "measured": by_program,
    }


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="groundup bench shakespeare", description=main.__doc__)
    parser.add_argument("--text", metavar="FILE", help="tinyshakespeare's input.txt (default: GROUNDUP_DATA's)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each program (default: 1)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of every run (default: 180)")
    parser.add_argument("--threads", type=int, default=THREADS, metavar="N", help="CPU threads (default: 2)")
    parser.add_argument("--alone", action="store_true", help="without the peer")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/shakespeare.json")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="numbers of the recipe to try; not to be saved")
    options = parser.parse_args(argv)
    if options.seeds < 1 or options.seconds <= 0 or options.threads < 1:
        parser.error("--seeds, --seconds and --threads must be more than 0")
    if options.save and (options.changes or (options.seconds, options.threads) != (SECONDS, THREADS)):
        parser.error(f"--save is of the recipe as it is, {SECONDS:g} s and {THREADS} threads: leave out what differs")
    return options


def main(argv: Sequence[str] = ()) -> int:
    """Validation loss on tinyshakespeare after three minutes on a CPU, beside nanoGPT's recipe for a CPU."""
    options = _arguments(argv)
    try:
        text = find_text(options.text)
        override(RECIPES[RECIPE], *options.changes)
    except ValueError as error:
        print(f"groundup bench shakespeare: {error}", file=sys.stderr)
        return 1
    load_before = load_average()
    measured = _measure_all(text, options)
    if losses(measured, OURS) is None:
        print("groundup bench shakespeare: no run of groundup ended", file=sys.stderr)
        return 1
    record = compare(measured, text, options.seconds)
    record.load_average = {"before": load_before, "after": load_average()}
    print_table(f"shakespeare, {options.seconds:g} s on {record.device}", _shown(record.rows), COLUMNS)
    for name in dict.fromkeys(m["program"] for m in measured):
        print(f"{name}: {_spread(losses(measured, name))}")
    if options.save:
        print(f"saved {save(record, 'shakespeare')}")
    print(record.line(), flush=True)
    return 0


def _measure_all(text: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seed after seed, and in each the programs in turn, so that a busy hour is nobody's alone."""
    contestants = {name: program for name, program in programs().items() if name == OURS or not options.alone}
    given = {"text": str(text.resolve()), "recipe": RECIPE}
    given |= {name: getattr(options, name) for name in ("seconds", "threads", "changes")}
    measured = []
    for seed in range(options.seeds):
        for name, program in contestants.items():
            measured.append({"program": name, "seed": seed, **measure(program, {**given, "seed": seed})})
            print(f"  {name}, seed {seed}: {_outcome(measured[-1])}", flush=True)
    return measured


def _outcome(one: dict[str, Any]) -> str:
    if "failure" in one:
        return one["failure"]
    return f"{one['loss']:.4f} nats per character after {one['train_seconds']:.0f} s, {one['steps']:,} updates"


def _spread(rates: Rates | None) -> str:
    if rates is None:
        return "no run ended"
    low, high, count = min(rates.values), max(rates.values), len(rates.values)
    return f"{rates.median:.4f} nats per character (median of {plural(count, 'seed')}, from {low:.4f} to {high:.4f})"


def _shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Losses with four digits, where tables have two."""
    digits = ("loss", "sliding")
    return [
        {key: f"{value:.4f}" if key in digits and value is not None else value for key, value in row.items()}
        for row in rows
    ]
