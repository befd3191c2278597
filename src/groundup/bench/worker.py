"""A program under measurement lives in a process of its own, and does k units of work when told to.

Own processes keep one program's threads, compiler caches and peak memory away from another's, and let a peer
run in an environment that groundup is not installed in. The child runs this file as a script and needs the
standard library only:

    python -P worker.py PROGRAM.py '{"option": 1}'

PROGRAM.py has `prepare(options: dict) -> (facts: dict, run: Callable[[int], dict])`. The child answers
one JSON object per line: first the facts; then, for each line `{"run": k}`, what `run(k)` returns with the
seconds that it took, unless it says itself which of them count.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any


class WorkerFailed(RuntimeError):
    """The child could not be prepared, or ended, or did not answer in time; says why in one line."""


class Worker:
    """The parent's end. A context manager: the child ends with it.

    `environment` is all of the child's; see `environ.for_program`. Without it the child has this process's, with what
    that was set for groundup alone.
    """

    def __init__(
        self,
        python: str,
        program: Path,
        options: dict[str, Any],
        environment: dict[str, str] | None = None,
        *,
        timeout: float = 600.0,
    ):
        self._timeout = timeout
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 closed by close()
        self._process = subprocess.Popen(
            [python, "-P", str(Path(__file__).resolve()), str(program), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
        )
        try:
            self.facts = self._answer()
        except WorkerFailed:
            self.close()
            raise

    def run(self, units: int) -> dict[str, Any]:
        """Do `units` of work: {"seconds": ..., and what the program says about them}."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{json.dumps({'run': units})}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerFailed(self._last_words()) from None
        return self._answer()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            if pipe is not None and not pipe.closed:
                _close_quietly(pipe)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = threading.Timer(self._timeout, self._process.kill)
        deadline.start()
        line = self._process.stdout.readline()
        deadline.cancel()
        if not line:
            raise WorkerFailed(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr if line.strip()]
        how = f"was killed after {self._timeout:.0f} s" if code == -9 else f"ended with code {code}"
        return f"{how}: {lines[-1] if lines else 'it said nothing'}"


def _close_quietly(pipe: IO[Any]) -> None:
    try:
        pipe.close()
    except BrokenPipeError:  # bytes were still waiting for a child that is gone
        return


def serve(
    prepare: Callable[[dict[str, Any]], tuple[dict[str, Any], Callable[[int], dict[str, Any]]]],
) -> None:
    """The child's end: prepare, then work on demand until standard input closes."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to stderr, and cannot be taken for an answer

    def answer(message: dict[str, Any]) -> None:
        answers.write(f"{json.dumps(message)}\n")
        answers.flush()

    try:
        started = time.perf_counter()
        facts, run = prepare(json.loads(sys.argv[2]))
        answer({"prepare_seconds": time.perf_counter() - started, **facts})
        for line in sys.stdin:
            units = json.loads(line)["run"]
            started = time.perf_counter()
            said = run(units)
            elapsed = time.perf_counter() - started
            answer({"seconds": elapsed, "elapsed": elapsed, **said})
    except Exception as error:  # whatever it was, the parent must hear of it
        traceback.print_exc()
        answer({"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"})


def _load(program: str) -> Any:
    sys.path.append(str(Path(program).parent))  # last, so that no neighbour of it can hide a package
    spec = importlib.util.spec_from_file_location("measured_program", program)
    assert spec is not None and spec.loader is not None, program
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    serve(lambda options: _load(sys.argv[1]).prepare(options))
