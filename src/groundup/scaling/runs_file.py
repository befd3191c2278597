"""runs.jsonl: one line for each finished run of a comparison or a sweep."""

import json
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

REMEDY = "restore it, or begin anew in another folder"


def read_runs(path: Path, keys: set[str], place: Callable[[dict[str, Any]], Hashable]) -> list[dict[str, Any]]:
    """The finished runs, each place once: two processes in one folder train some runs twice, with equal results.

    A last line that a kill cut short is left out, and cut off the file. ValueError where a line is no object that has
    at least these keys.
    """
    if not path.exists():
        return []
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if whole != raw:
        path.write_bytes(whole)
    once: dict[Hashable, dict[str, Any]] = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            run = json.loads(line)
            if not isinstance(run, dict) or not keys <= run.keys():
                raise ValueError("a run has other keys")
            once.setdefault(place(run), run)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}:{number}: a line is not that of a run; {REMEDY}") from error
    return list(once.values())
