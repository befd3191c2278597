"""metrics.jsonl: one record per log interval, written so that a kill never leaves it wrong."""

import contextlib
import functools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger("groundup.train")


class Sink(Protocol):
    """Another place that receives the same records (see `sinks`).

    One that can forget has a third method, `rewind(step)`: records after `step` will come again, or, at step 0,
    for the first time.
    """

    def write(self, record: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class MetricsLog:
    """Appends records to `run_dir/metrics.jsonl` and unusual events to `run_dir/events.jsonl`.

    Opening it at a checkpoint's step drops later records and a torn last line, so that a resumed run logs no
    step twice. A record that cannot be written (full disk) is kept and tried again with the next one: logging
    never stops training. `run_dir=None` only feeds the sinks.
    """

    def __init__(
        self, run_dir: str | Path | None, *, from_step: int = 0, sinks: Sequence[Sink] = (), name: str = "metrics.jsonl"
    ):
        self.path = Path(run_dir) / name if run_dir is not None else None
        self.sinks = list(sinks)
        self._waiting: list[bytes] = []
        self._complained = False
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self.rewind(from_step)

    def rewind(self, step: int) -> None:
        """Forget every record after `step`; sinks that can forget are told to."""
        self._waiting = [line for line in self._waiting if json.loads(line)["step"] <= step]
        if self.path is not None and self.path.exists():
            _truncate(self.path, step)
        for sink in list(self.sinks):
            if (forget := getattr(sink, "rewind", None)) is not None:
                self._guard(sink, functools.partial(forget, step))

    def write(self, record: dict[str, Any], to_sinks: dict[str, Any] | None = None) -> None:
        """Append one record; numbers that JSON cannot hold become null. `to_sinks` is for the sinks beside it."""
        clean = {key: None if _is_odd(value) else value for key, value in record.items()}
        if self.path is not None:
            self._waiting.append(json.dumps(clean).encode() + b"\n")
            self._append(self.path)
        for sink in list(self.sinks):
            self._guard(sink, functools.partial(sink.write, {**(to_sinks or {}), **clean}))

    def event(self, step: int, kind: str, text: str) -> None:
        """Note something unusual (a skipped step, a failed save), in events.jsonl and on the logger."""
        logger.warning("step %d: %s: %s", step, kind, text)
        if self.path is None:
            return
        line = json.dumps({"step": step, "event": kind, "text": text, "time": round(time.time(), 3)})
        try:
            with open(self.path.with_name("events.jsonl"), "a", encoding="utf-8") as f:
                f.write(line + "\n")
        except OSError as error:
            self._complain(error)

    def sync(self) -> None:
        """Make all records durable: called before a checkpoint that will count on them."""
        if self.path is None:
            return
        self._append(self.path)
        try:
            with open(self.path, "ab") as f:
                os.fsync(f.fileno())
        except OSError as error:
            self._complain(error)

    def close(self) -> None:
        self.sync()
        for sink in list(self.sinks):
            self._guard(sink, sink.close)

    def _append(self, path: Path) -> None:
        whole = None
        try:
            with open(path, "ab", buffering=0) as f:
                whole = f.tell()
                while self._waiting:
                    if f.write(self._waiting[0]) != len(self._waiting[0]):
                        raise OSError("the disk took only part of a record")
                    whole = f.tell()
                    self._waiting.pop(0)
        except OSError as error:
            self._complain(error)
            if whole is not None:
                with contextlib.suppress(OSError):
                    os.truncate(path, whole)

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("cannot write the log (%s); training goes on, and writing is tried again", error)

    def _guard(self, sink: Sink, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # a tracker may raise anything, and none of it may stop training
            self.sinks.remove(sink)
            logger.warning("%s failed and is dropped: %s", type(sink).__name__, error)


def read_metrics(run_dir: str | Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The whole records of a run's metrics.jsonl, or of another file like it; a torn last line is left out."""
    path = Path(run_dir) / name
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if _is_record(line, None)]


def _truncate(path: Path, step: int) -> None:
    """Cut the file before the first line that is no whole record up to `step`."""
    whole = 0
    with open(path, "rb") as f:
        for line in f:
            if not _is_record(line, step):
                break
            whole += len(line)
    os.truncate(path, whole)


def _is_record(line: bytes, last_step: int | None) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        record = json.loads(line)
        return last_step is None or int(record["step"]) <= last_step
    except (ValueError, KeyError, TypeError):
        return False


def _is_odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
