"""A module of this package in a process of its own, with a time limit: what hangs or dies there harms nothing here."""

import subprocess
import sys

_PROGRAM = "import sys, runpy; sys.path[:0] = sys.argv.pop(1).split('\\n'); runpy.run_module({!r}, run_name='__main__')"


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    """`python -m module arguments`, with this process's search path."""
    command = [sys.executable, "-c", _PROGRAM.format(module), "\n".join(sys.path), *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )


def last_words(stderr: str) -> str:
    """The last line that a process wrote to standard error: the message of the exception that ended it."""
    return next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "no message")


def finish(process: subprocess.Popen[str], seconds: float) -> tuple[str, str | None]:
    """(standard output, what went wrong or None). After `seconds` the process is ended."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "", f"no answer within {seconds:g} s"
    return out, None if process.returncode == 0 else last_words(err)
