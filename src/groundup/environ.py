"""The environment of this process: the only user of `os.environ`."""

import os
import sys
from pathlib import Path


def env(name: str, default: str | None = None) -> str | None:
    """An environment variable. Every other file asks here, so that all of them can be found in one place."""
    return os.environ.get(name, default)


def set_default(name: str, value: str) -> None:
    """Set an environment variable, for this process and its children, unless it is set."""
    os.environ.setdefault(name, value)


def put(name: str, value: str) -> None:
    """Set an environment variable, for this process and its children, whatever it was."""
    os.environ[name] = value


def cache_directory() -> Path:
    """Where this user's files are kept that can be made again: `GROUNDUP_CACHE`, else as the platform has it."""
    if named := env("GROUNDUP_CACHE"):
        return Path(named)
    if sys.platform == "win32":
        return Path(env("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "groundup" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "groundup"
    try:
        return Path(env("XDG_CACHE_HOME") or Path.home() / ".cache") / "groundup"
    except RuntimeError:  # a user without a home: nothing can be kept, and a shared folder is not to be trusted
        return Path(os.devnull) / "groundup"


def for_child(changes: dict[str, str]) -> dict[str, str]:
    """The environment of a process to be started: this one's, with `changes`."""
    return {**os.environ, **changes}


THREAD_VARIABLES = ("OMP_", "GOMP_", "KMP_", "MKL_")
"""How variables begin that steer the threads of OpenMP's libraries and of those that bring their own."""


def for_program(threads: int | None = None) -> dict[str, str]:
    """The environment of a program to be measured: of what steers threads it has their number and nothing else.

    This process sets `OMP_WAIT_POLICY` for itself, which halves the speed of programs that are made to wait actively.
    The number is `threads`, or `OMP_NUM_THREADS` as it is here, or left to the program.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(THREAD_VARIABLES)}
    number = str(threads) if threads else os.environ.get("OMP_NUM_THREADS")
    return kept | ({"OMP_NUM_THREADS": number} if number else {})
