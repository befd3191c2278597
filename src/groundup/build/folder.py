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
REMEDY = "restore it, or begin a new run"
# Files that a finished stage has left, and for JSON a key by which a whole one is known.
LEFT_BY: dict[str, dict[str, str | None]] = {
    "plan": {"plan.json": "plan"},
    "tokenizer": {
        "tokenizer.json": "model",
        "data/held_out.jsonl": None,
        "data/held_out.json": "sha256",
        "data/validation.jsonl": None,
        "data/validation.json": "sha256",
        "data/train/manifest.json": "shards",
    },
    "baselines": {"baselines.json": "kneser_ney_5"},
    "pretrain": {"model.safetensors": None, "training.json": "weights_sha256"},
    "evaluate": {"evaluation.json": "bits_per_byte"},
    "samples": {"samples/base.json": None},
    "report": {"result.json": "bits_per_byte"},
}


@dataclass
class Outcome:
    """Whether a stage came to its end, or was left early and must be gone on with."""

    finished: bool = True


class RunFolder:
    """Paths, finished stages and the clock of one run.

    The clock counts the seconds that the build has really run, over any number of interruptions, and so does
    that of each stage; it is saved after every stage and with every checkpoint.
    """

    def __init__(self, path: Path, started: float) -> None:
        self.path = path
        self._started = started
        self._before = 0.0
        self.resumed = False
        self._claim: IO[str] | None = None
        self.stages: list[dict[str, Any]] = []
        self._unfinished: dict[str, float] = {}  # seconds of stages that were left before their end
        self._running: tuple[str, float] | None = None  # a stage, and what `elapsed` was when it began

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
        if path.exists() and (names := {p.name for p in path.iterdir()}) and not _is_false_start(names):
            remedy = f", or --resume {path}" if (path / "config.json").exists() else ""
            raise ValueError(f"--out {path}: it already holds something; choose another{remedy}")
        above = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise ValueError(f"--out {path}: no folder can be made in {above}; choose another place")

    @classmethod
    def open(cls, path: Path, started: float) -> "RunFolder":
        """A folder that a build made. ValueError when it is none, when another process works in it, or when what
        a finished stage left is gone."""
        if not (path / "config.json").exists():
            raise ValueError(f"--resume {path}: no config.json there, so this is not the folder of a run")
        folder = cls(path, started)
        folder.resumed = True
        folder.claim()
        try:
            folder._load()
        except (ValueError, OSError):
            folder.release()
            raise
        return folder

    def _load(self) -> None:
        """Take over the state. ValueError where what the next stages build on is gone or damaged."""
        if (self.path / STATE_FILE).exists():
            self._before, self.stages, self._unfinished = _parse_state(self.read(STATE_FILE), self.path / STATE_FILE)
        done = [stage["name"] for stage in self.stages]
        for stage in ["report"] if "report" in done else done:
            for file, key in LEFT_BY.get(stage, {}).items():
                self._check_left(file, key)

    def _check_left(self, name: str, key: str | None) -> None:
        if not (self.path / name).is_file():
            raise ValueError(f"{self.path / name}: missing; {REMEDY}")
        if key is not None and not (isinstance(content := self.read(name), dict) and key in content):
            raise ValueError(f"{self.path / name}: damaged, it has no {key!r}; {REMEDY}")

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

    def unfinished(self) -> dict[str, float]:
        """Seconds, over all sessions, of every stage that was begun and is not done."""
        if self._running is None:
            return self._unfinished
        name, begun = self._running
        return {**self._unfinished, name: round(self._unfinished.get(name, 0.0) + self.elapsed - begun, 3)}

    def save_state(self) -> None:
        state = {"elapsed_seconds": round(self.elapsed, 3), "stages": self.stages, "unfinished": self.unfinished()}
        write_json(self.path / STATE_FILE, state)

    def save_clock(self) -> None:
        """Save the state during training, which a full disk must not stop (the checkpoints say that it is full)."""
        with contextlib.suppress(OSError):
            self.save_state()

    def done(self, name: str) -> bool:
        return any(stage["name"] == name for stage in self.stages)

    @contextlib.contextmanager
    def stage(self, name: str, predicted_seconds: float | None = None) -> Iterator["Outcome"]:
        """Time a stage; it counts as done only when its body came to the end and left `finished` true.

        Its seconds are those of all sessions that worked on it.
        """
        outcome = Outcome()
        self._running = name, self.elapsed
        try:
            yield outcome
        finally:
            self._unfinished, self._running = self.unfinished(), None
            self.save_clock()
        if outcome.finished:
            self.record(name, self._unfinished.pop(name), predicted_seconds)

    def record(self, name: str, seconds: float, predicted_seconds: float | None = None) -> None:
        """Note that a stage is done."""
        self.stages.append({"name": name, "seconds": round(seconds, 3), "predicted_seconds": predicted_seconds})
        self.save_state()

    def write(self, name: str, value: Any) -> None:
        write_json(self.path / name, value)

    def read(self, name: str) -> Any:
        """A JSON file of the run. ValueError, with what to do, where it is missing or damaged."""
        try:
            return read_json(self.path / name)
        except FileNotFoundError as error:
            raise ValueError(f"{self.path / name}: missing; {REMEDY}") from error
        except ValueError as error:
            raise ValueError(f"{error}; {REMEDY}") from error


def _is_false_start(names: set[str]) -> bool:
    """Whether only a build that was killed at once can have left these, with its lock among them."""
    return "lock" in names and all(_is_leftover(name) for name in names)


def _is_leftover(name: str) -> bool:
    return name in FALSE_START or (name.startswith(".") and name.endswith(".tmp"))


def _parse_state(state: Any, path: Path) -> tuple[float, list[dict[str, Any]], dict[str, float]]:
    """The clock, the stages that are done, and the seconds of those left early (older folders lack these)."""
    try:
        stages = [{**stage, "name": str(stage["name"])} for stage in state["stages"]]
        unfinished = {str(name): float(seconds) for name, seconds in state.get("unfinished", {}).items()}
        return float(state["elapsed_seconds"]), stages, unfinished
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path}: damaged; expected elapsed_seconds and a list of stages with names; {REMEDY}"
        ) from error


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
