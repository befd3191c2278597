"""Everything that only a GPU can tell, in one command of at most nine minutes, most important first.

    python benchmarks/gpu.py [--seconds 540] [--out FOLDER]

A step that is recorded for the present code is not run again: a second call goes on where the first ran out
of time. Results are JSON files in `--out` (default: $OUT, else benchmarks/results). groundup need not be
installed, only what it imports, and pytest.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
SMALLEST_SLICE = 20.0


@dataclass(frozen=True)
class Step:
    """A command worth `seconds` at most, and how its outcome is read from what it printed."""

    name: str
    command: list[str]
    seconds: float
    read: Callable[[str], dict[str, Any]]


def steps() -> list[Step]:
    tests = sorted(p for p in (REPOSITORY / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text("utf-8"))
    options = ["-m", "gpu", "-ra", "--color=no", "-p", "no:cacheprovider"]
    bench = [sys.executable, "-m", "groundup.cli", "bench", "train-step", "--seconds", "20", "--turn-seconds", "1"]
    kernels = [sys.executable, "-m", "groundup.cli", "bench", "kernels"]
    predictions = [sys.executable, "experiments/013_predictions.py"]
    return [
        Step(
            "tests",
            [sys.executable, "-m", "pytest", *options, *(p.relative_to(REPOSITORY).as_posix() for p in tests)],
            180.0,
            last_lines,
        ),
        Step("kernels", [*kernels, "--device", "cuda", "--limit", "150", "--tune"], 220.0, last_json),
        Step("decode", [sys.executable, "benchmarks/decode_gpu.py"], 90.0, last_json),
        Step("train-step-S", [*bench, "--size", "S"], 300.0, last_json),
        Step("train-step-M", [*bench, "--size", "M"], 300.0, last_json),
        Step("float8", [sys.executable, "benchmarks/float8.py", "--device", "cuda"], 60.0, last_json),
        Step("predictions", [*predictions, "--device", "cuda"], 240.0, last_json),
    ]


def last_json(output: str) -> dict[str, Any]:
    lines = [line for line in output.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


def last_lines(output: str) -> dict[str, Any]:
    return {"output": output.splitlines()[-60:]}


def code_hash() -> str:
    """Of everything that a result depends on: a change of it makes results stale."""
    digest = hashlib.sha256()
    for folder in ("src", "tests", "benchmarks"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            digest.update(path.relative_to(REPOSITORY).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def run(step: Step, seconds: float) -> dict[str, Any]:
    """Run in a process group of its own, so that nothing of it outlives its time."""
    path = os.pathsep.join([str(REPOSITORY / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    started = time.monotonic()
    process = subprocess.Popen(
        step.command,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        code: int | str = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        code = f"stopped after {seconds:.0f} s"
    print(output, flush=True)
    result = step.read(output)
    return {
        **result,
        "exit": code,
        "wall_seconds": round(time.monotonic() - started, 1),
        "command": step.command[1:],
    }


def gpu_name() -> str | None:
    """The GPU that torch sees, asked in a process of its own: this one must not hold memory on it."""
    probe = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def is_recorded(path: Path, code: str) -> bool:
    if not path.exists():
        return False
    known = json.loads(path.read_text("utf-8"))
    return known.get("code") == code and known.get("exit") == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=540.0, help="for everything together (default 540)")
    parser.add_argument("--out", type=Path, default=None, help="where the JSON files go")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    name, code = gpu_name(), code_hash()
    if name is None:
        print("benchmarks/gpu.py: torch sees no CUDA GPU here; nothing was measured")
        return 0
    recorded = REPOSITORY / "benchmarks" / "results"
    out = options.out or Path(os.environ.get("OUT") or recorded)
    out.mkdir(parents=True, exist_ok=True)
    failed = False
    for step in steps():
        file = f"gpu-{step.name}.json"
        if is_recorded(recorded / file, code) or is_recorded(out / file, code):
            print(f"== {step.name}: recorded already for this code")
            continue
        left = deadline - time.monotonic()
        if left < SMALLEST_SLICE:
            print(f"== {step.name}: no time left; run this again")
            continue
        print(f"== {step.name}", flush=True)
        result = {"step": step.name, "gpu": name, "code": code, **run(step, min(step.seconds, left))}
        (out / file).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        failed |= result["exit"] != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
