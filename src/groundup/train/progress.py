"""The line that a person watches: a bar on a terminal, plain lines elsewhere."""

import math
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class ProgressLine:
    """Shows loss, tokens per second, MFU and the time left on a text `stream` (default: standard error)."""

    def __init__(self, stream: Any = None, seconds_between_lines: float = 10.0):
        self._stream = stream if stream is not None else sys.stderr
        self._pause = seconds_between_lines
        self._last = -math.inf
        self._bar: Progress | None = None
        if self._stream.isatty():
            columns = (TextColumn("train"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"))
            self._bar = Progress(*columns, console=Console(file=self._stream), transient=True)
            self._task = self._bar.add_task("train", total=1.0, text="")
            self._bar.start()

    def show(self, record: dict[str, Any], fraction: float | None, seconds_left: float | None) -> None:
        text = format_line(record, seconds_left)
        if self._bar is not None:
            self._bar.update(self._task, completed=fraction or 0.0, text=text)
        elif time.monotonic() - self._last >= self._pause:
            self._last = time.monotonic()
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def format_line(record: dict[str, Any], seconds_left: float | None) -> str:
    """`step 1,200  loss 2.314  41,300 tok/s  MFU 45 %  4:05 left`"""
    parts = [
        f"step {record['step']:,}",
        f"loss {record['loss']:.3f}",
        f"{record['tokens_per_second']:,.0f} tok/s",
    ]
    if record.get("mfu") is not None:
        parts.append(f"MFU {record['mfu']:.0%}")
    if record.get("skipped"):
        parts.append(f"{record['skipped']} skipped")
    if seconds_left is not None:
        parts.append(f"{_clock(seconds_left)} left")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
