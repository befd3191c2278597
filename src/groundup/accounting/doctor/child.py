"""A module of this package in a process of its own, with a time limit: what hangs or dies there harms nothing here."""

import importlib.util
import subprocess
import sys

LONGEST = 200

# The file is run and not the module, whose package would first import everything else that is in it.
_PROGRAM = """
import runpy, sys
sys.path[:0] = sys.argv.pop(1).split("\\n")
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    """`python -m module arguments`, with this process's search path. ValueError for a module that has no file."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None or not found.has_location:
        raise ValueError(f"module {module}: it has no file that a child could run")
    command = [sys.executable, "-c", _PROGRAM, "\n".join(sys.path), found.origin, *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )


def last_words(stderr: str) -> str:
    """The last line that a process wrote to standard error, cut short: the message of the exception that ended it."""
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "no message")
    return last if len(last) <= LONGEST else f"{last[:LONGEST]} ..."


def finish(process: subprocess.Popen[str], seconds: float) -> tuple[str, str | None]:
    """(standard output, what went wrong or None). After `seconds` the process is ended."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "", f"no answer within {seconds:g} s"
    return out, None if process.returncode == 0 else last_words(err)
