"""What the verbs share that fill a folder with many runs, and can go on with it: ablate, history, sweep."""

from collections.abc import Sequence
from pathlib import Path

from groundup.cli_parts import Arguments, say

INTERRUPTED = 130


def refuse_beside_resume(options: Arguments, names: Sequence[str], whose: str) -> None:
    """ValueError for an option that was given beside --resume; `whose` settings are gone on with."""
    given = [name for name in names if _was_given(getattr(options, name))]
    if given:
        name = given[0].replace("_", "-")
        raise ValueError(f"--resume goes on with the {whose}'s own settings: leave out {name!r}")


def _was_given(value: object) -> bool:
    """Whether this is not what an option has when nobody names it; 0 is somebody's."""
    return value is not None and value is not False and value not in ([], "")


def stopped(verb: str, folder: str | Path | None, begun: str = "config.json") -> int:
    """Say how to go on in a folder that has the file `begun`, or that there is nothing to go on with; the exit code."""
    if folder and (Path(folder) / begun).is_file():
        say(f"stopped; go on with: groundup {verb} --resume {folder}")
    else:
        say("stopped before the first run: there is nothing to go on with; begin anew, in another folder")
    return INTERRUPTED
