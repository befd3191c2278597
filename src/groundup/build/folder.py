"""A run's folder: which stages are done, how much of the budget is used, and where things lie.

The folder is the API: `report`, `eval`, `generate`, `chat` and a resumed build read only this. A finished run
is also a model folder in Hugging Face layout.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from groundup.files import read_json, write_json

try:
    import fcntl
except ImportError:  # Windows: two processes are kept apart only by their numbers
    fcntl = None

STATE_FILE = "state.json"
# What a build leaves that was killed before it could be gone on with: the next may begin in the same folder.
FALSE_START = ("lock", "env.json", "plan.json")


@dataclass
class Outcome:
    """Whether a stage came to its end, or was left early and must be gone on with."""

    finished: bool = True


class RunFolder:
    """Paths, finished stages and the clock of one run.

    The clock counts the seconds that the build has really run, over any number of interruptions;
    it is saved after every stage and with every checkpoint.
    """

    def __init__(self, path: Path, started: float) -> None:
        self.path = path
        self._started = started
        self._before = 0.0
        self._claim: IO[str] | None = None
        self.stages: list[dict[str, Any]] = []

    @classmethod
    def create(cls, path: Path, started: float) -> "RunFolder":
        """A new, empty folder; one that holds something is refused, so that no run overwrites another."""
        cls.check_free(path)
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path, started)
        folder.claim()
        return folder

    @staticmethod
    def check_free(path: Path) -> None:
        """ValueError when `path` cannot become a new run's folder."""
        if path.exists() and not path.is_dir():
            raise ValueError(f"--out {path}: a file is there; name a new folder")
        if path.exists() and not all(_is_false_start(p.name) for p in path.iterdir()):
            remedy = f", or --resume {path}" if (path / "config.json").exists() else ""
            raise ValueError(f"--out {path}: it already holds something; choose another{remedy}")
        above = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise ValueError(f"--out {path}: no folder can be made in {above}; choose another place")

    @classmethod
    def open(cls, path: Path, started: float) -> "RunFolder":
        """A folder that a build made. ValueError when it is none, or when another process works in it."""
        if not (path / "config.json").exists():
            raise ValueError(f"--resume {path}: no config.json there, so this is not the folder of a run")
        folder = cls(path, started)
        folder.claim()
        if (path / STATE_FILE).exists():
            folder._before, folder.stages = _read_state(path / STATE_FILE)
        return folder

    def claim(self) -> None:
        """Keep a second process out, as long as this one lives (the system lets go of a dead one's lock)."""
        lock = self.path / "lock"
        claim = open(lock, "a", encoding="utf-8")  # noqa: SIM115
        if not _take(claim, lock):
            claim.close()
            owner = lock.read_text(errors="replace").strip() if lock.exists() else ""
            raise ValueError(
                f"{self.path}: process {owner or 'another'} is working in it; wait for it or stop it first"
            )
        lock.write_text(str(os.getpid()))
        self._claim = claim

    def release(self) -> None:
        """Let others in again."""
        if self._claim is not None:
            (self.path / "lock").unlink(missing_ok=True)
            self._claim.close()
            self._claim = None

    @property
    def elapsed(self) -> float:
        """Seconds of work so far, earlier sessions included."""
        return self._before + time.monotonic() - self._started

    def deadline(self, budget_seconds: float) -> float:
        """The moment (on `time.monotonic`'s clock) when the budget is used up."""
        return self._started + budget_seconds - self._before

    def save_state(self) -> None:
        write_json(self.path / STATE_FILE, {"elapsed_seconds": round(self.elapsed, 3), "stages": self.stages})

    def save_clock(self) -> None:
        """Save the state during training, which a full disk must not stop (the checkpoints say that it is full)."""
        with contextlib.suppress(OSError):
            self.save_state()

    def done(self, name: str) -> bool:
        return any(stage["name"] == name for stage in self.stages)

    @contextlib.contextmanager
    def stage(self, name: str, predicted_seconds: float | None = None) -> Iterator["Outcome"]:
        """Time a stage; it counts as done only when its body came to the end and left `finished` true."""
        start, outcome = self.elapsed, Outcome()
        yield outcome
        if outcome.finished:
            self.record(name, self.elapsed - start, predicted_seconds)

    def record(self, name: str, seconds: float, predicted_seconds: float | None = None) -> None:
        """Note that a stage is done."""
        self.stages.append({"name": name, "seconds": round(seconds, 3), "predicted_seconds": predicted_seconds})
        self.save_state()

    def write(self, name: str, value: Any) -> None:
        write_json(self.path / name, value)

    def read(self, name: str) -> Any:
        return read_json(self.path / name)


def fresh_path(name: str, parent: Path = Path("runs")) -> Path:
    """runs/name, or the first free of runs/name-2, runs/name-3, ..."""
    taken = (parent / (name if n == 1 else f"{name}-{n}") for n in range(1, 10_000))
    return next(path for path in taken if not path.exists())


def _is_false_start(name: str) -> bool:
    return name in FALSE_START or (name.startswith(".") and name.endswith(".tmp"))


def _read_state(path: Path) -> tuple[float, list[dict[str, Any]]]:
    state = read_json(path)
    try:
        return float(state["elapsed_seconds"]), [{**stage, "name": str(stage["name"])} for stage in state["stages"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged; expected elapsed_seconds and a list of stages with names") from error


def _take(claim: IO[str], lock: Path) -> bool:
    """Whether this process now holds the open file `claim`, and it is still the one of that name."""
    if fcntl is not None:
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.fstat(claim.fileno()).st_nlink > 0
        except BlockingIOError:
            return False
        except OSError:  # a network's file system without locks
            pass
    owner = lock.read_text(errors="replace").strip()
    return not (owner.isdecimal() and _alive(int(owner)))


def _alive(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
