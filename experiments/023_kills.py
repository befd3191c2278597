"""Entry 023: does a run whose ranks are killed again and again end with the weights of one that was left alone?

    python experiments/023_kills.py [--kills 100] [--ranks 2] [--longest 9] [--seed N]

Trains a small model twice with `groundup train`: once in peace, once with a random rank killed (SIGKILL) at random
moments, from the first seconds of a start, before any step, to the writing of a checkpoint. Prints a JSON line.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from groundup.tensorfile import read_tensors

SHAPE = ["vocab_size=270", "num_layers=2", "d_model=32", "num_heads=2", "d_head=16", "context_length=32",
         "batch_size=4", "compile=false", "precision=fp32", "curve_points=0"]  # fmt: skip
STEPS_PER_KILL = 60


def start(out: Path, options: argparse.Namespace) -> subprocess.Popen:
    """A launcher of its own process, with restarts that do not run out."""
    text = out.parent / "verse.txt"
    text.write_text("".join(f"To be, or not to be, that is question {i}:\n" for i in range(2_000)), encoding="utf-8")
    tokens = options.kills * STEPS_PER_KILL * 4 * 32
    command = [sys.executable, "-m", "groundup.cli", "train", str(text), *SHAPE, "--tokens", str(tokens)]
    command += ["--checkpoint-every", "20", "--ranks", str(options.ranks), "--restarts", "20", "--out", str(out)]
    with open(f"{out}.log", "w") as said:  # not a pipe, which would be full before the end
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def disturb(process: subprocess.Popen, kills: int, longest: float, chance: random.Random) -> int:
    """Kill a rank every now and then until the run has ended, or it was done so often."""
    done = 0
    while done < kills and process.poll() is None:
        time.sleep(chance.uniform(0.5, longest))
        ranks = children(process.pid) if process.poll() is None else []
        if ranks:
            os.kill(chance.choice(ranks), signal.SIGKILL)
            done += 1
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--longest", type=float, default=9.0, help="seconds between kills; more on a slow machine")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        began = time.monotonic()
        undisturbed = start(Path(scratch, "undisturbed"), options)
        undisturbed.wait()
        process = start(Path(scratch, "run"), options)
        done = disturb(process, options.kills, options.longest, random.Random(options.seed))
        process.wait()
        said = Path(scratch, "run.log").read_text()
        ours, theirs = (read_tensors(Path(scratch, name, "model.safetensors")) for name in ("run", "undisturbed"))
        different = [name for name in theirs if name not in ours or not ours[name].equal(theirs[name])]
    print(json.dumps({
        "name": "kills", "kills": done, "ranks": options.ranks, "restarts": said.count("starting all ranks again"),
        "exit_codes": [undisturbed.returncode, process.returncode], "different_tensors": different,
        "seconds": round(time.monotonic() - began),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
