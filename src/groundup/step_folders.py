"""Folders of one run that are named after training steps: step-9, step-10, step-10.1 (saved again), newest first.

A folder is filled under a name that begins with a dot and ends in .tmp, and takes its own by a rename; no name is used
twice. So whatever has a name is whole, and what a kill left behind is known by its own.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from groundup.files import fsync_directory

_NAME = re.compile(r"step-(\d+)(?:\.(\d+))?")


def step_folders(directory: str | Path) -> list[Path]:
    """Every folder named after a step, newest first, whole or not."""
    directory = Path(directory)
    named = [p for p in directory.iterdir() if _NAME.fullmatch(p.name)] if directory.is_dir() else []
    return sorted(named, key=_order, reverse=True)


def step_of(path: Path) -> int | None:
    """The step that a folder is named after, if it is."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def free_name(directory: Path, step: int) -> Path:
    """`step-N`, or `step-N.1`, `step-N.2`, ... where that is taken."""
    taken = [attempt for number, attempt in map(_order, step_folders(directory)) if number == step]
    return directory / (f"step-{step}.{max(taken) + 1}" if taken else f"step-{step}")


def sweep(directory: Path) -> None:
    """Remove what a killed save or prune left behind."""
    for path in directory.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def prune(directory: str | Path, keep: int, is_whole: Callable[[Path], bool]) -> None:
    """Drop all but the newest `keep`, unless none of those is whole: the last good one stays."""
    if keep < 1:
        raise ValueError(f"keep={keep}: expected at least 1")
    kept, dropped = step_folders(directory)[:keep], step_folders(directory)[keep:]
    if not dropped or not any(is_whole(path) for path in kept):
        return
    for path in dropped:
        doomed = path.with_name(f".{path.name}.dropped.tmp")
        path.rename(doomed)
        shutil.rmtree(doomed)
    fsync_directory(Path(directory))


def _order(path: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)
