"""Counting pre-tokens by several threads: each into tables of its own, which go to common ones when they are full."""

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock
from typing import Protocol

import numpy as np

from groundup.tokenizer.count_state import Progress, Range
from groundup.tokenizer.counting import PretokenCounter
from groundup.tokenizer.fast.counts import TEXT_END, WordTables, can_count
from groundup.tokenizer.fast.front import BLOCK_PADDING, SCANNERS
from groundup.tokenizer.fast.merges import Words, words_of
from groundup.tokenizer.fast.objects import prepare
from groundup.tokenizer.plain_tables import PlainTables
from groundup.tokenizer.pretokenize import canonical, well_formed
from groundup.tokenizer.ranges import FileRange

logger = logging.getLogger(__name__)

STEP = 1 << 21  # bytes that are counted at a time
TABLE_BYTES = 1 << 26  # of a worker's tables, unless `memory` is small
_LEAST_COMMON_BYTES = 1 << 20
_REPLACEMENT = "\ufffd".encode()


class Task(Protocol):
    """Text to count."""

    @property
    def size(self) -> int:
        """Its bytes."""
        ...

    def fill(self, buffer: np.ndarray) -> None:
        """Write these bytes to the beginning of a buffer."""
        ...


@dataclass(frozen=True)
class Texts:
    """Texts, each a document of its own, in UTF-8 with TEXT_END in between."""

    data: bytes

    @property
    def size(self) -> int:
        """Bytes, with those in between."""
        return len(self.data)

    def fill(self, buffer: np.ndarray) -> None:
        """Copy them."""
        buffer[: self.size] = np.frombuffer(self.data, np.uint8)


def batches(texts: Iterable[str]) -> Iterator[Texts]:
    """Texts put together to about STEP bytes; surrogate code points become U+FFFD."""
    batch: list[bytes] = []
    size = 0
    for text in texts:
        try:
            batch.append(text.encode())
        except UnicodeEncodeError:
            batch.append(well_formed(text).encode())
        size += len(batch[-1])
        if size >= STEP:
            yield Texts(TEXT_END.join(batch))
            batch, size = [], 0
    if batch:
        yield Texts(TEXT_END.join(batch))


class WordCount:
    """Counts tasks by `workers` threads, with at most about `memory` bytes for the words.

    Threads help where there is a scanner for the pattern; Python splits by the other patterns, one thread at a time.
    """

    def __init__(
        self,
        pattern: str | None,
        special_tokens: Sequence[str],
        workers: int | None = None,
        memory: int | None = None,
        seconds_between_deliveries: float = float("inf"),
    ) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers: {workers} is not a number of threads")
        self.pattern = canonical(pattern)
        self._special_tokens = list(special_tokens)
        self._compiled = _can_compile(self.pattern)
        scans = self._compiled and can_count(self.pattern)
        self.workers = (workers or default_workers(memory)) if scans else 1
        self._memory = memory
        self._table_bytes, self._common_bytes = _share_out(memory, self.workers)
        self._seconds = seconds_between_deliveries
        self._free: SimpleQueue[_Worker] = SimpleQueue()
        for _ in range(self.workers):
            self._free.put(self._new_worker())
        self._common: WordTables | PlainTables | None = None
        self._lock = Lock()
        self._failed: str | None = None
        self._ranges: set[Range] = set()
        self._invalid: dict[int, int] = {}

    def go_on_from(self, progress: Progress) -> None:
        """Begin with what was counted before."""
        if len(progress.words):
            self._common = WordTables() if self._compiled else PlainTables()
            self._common.bound(self._common_bytes)
            self._common.add(progress.words)
        self._ranges, self._invalid = set(progress.ranges), dict(progress.invalid)

    def run(self, tasks: Iterable[Task]) -> Iterator[int]:
        """Count all tasks; yields the bytes of each that is done."""
        waiting: deque[Future[int]] = deque()
        pool = ThreadPoolExecutor(self.workers)
        try:
            for task in tasks:
                waiting.append(pool.submit(self._count, task))
                if len(waiting) > 2 * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
            for _ in range(self.workers):
                self._deliver(self._free.get())
        finally:
            pool.shutdown(cancel_futures=True)

    def progress(self) -> Progress:
        """All that workers have delivered; in the end, everything."""
        with self._lock:
            words = self._common.words() if self._common else words_of({})
            return Progress(set(self._ranges), dict(self._invalid), words)

    def _new_worker(self) -> "_Worker":
        tables = PlainTables()
        if self._compiled:
            scanner = self.pattern if can_count(self.pattern) else None
            tables = WordTables(scanner, self._special_tokens)
        return _Worker(tables, self.pattern, self._special_tokens)

    def _count(self, task: Task) -> int:
        worker = self._free.get()
        try:
            if self._memory is not None and task.size > self._memory // 4:
                raise ValueError(
                    f"memory: {task.size:,} bytes of text without a place to cut, of {self._memory:,} allowed"
                )
            worker.count(task)
            overdue = time.monotonic() - worker.delivered > self._seconds
            if overdue or worker.tables.nbytes > self._table_bytes:
                self._deliver(worker)
                worker = self._new_worker()
        finally:
            self._free.put(worker)
        return task.size

    def _deliver(self, worker: "_Worker") -> None:
        """Add a worker's counts to the common ones; the first tables to come are the common ones."""
        with self._lock:
            if self._failed:
                raise ValueError(self._failed)
            try:
                self._add(worker)
            except ValueError as error:
                self._failed = str(error)
                raise

    def _add(self, worker: "_Worker") -> None:
        if self._common is None:
            self._common = worker.tables
            self._common.bound(self._common_bytes)
        elif len(worker.tables):
            self._common.add(worker.tables.words())
        self._ranges |= worker.ranges
        for number, count in worker.invalid.items():
            self._invalid[number] = self._invalid.get(number, 0) + count


class _Worker:
    """What a thread works with: tables, a buffer, and a note of what is in the tables."""

    def __init__(self, tables: WordTables | PlainTables, pattern: str, special_tokens: Sequence[str]) -> None:
        self.tables = tables
        self._pattern, self._special_tokens = pattern, special_tokens
        self.ranges: set[Range] = set()
        self.invalid: dict[int, int] = {}
        self.delivered = time.monotonic()
        self._buffer = np.empty(0, np.uint8)

    def count(self, task: Task) -> None:
        """Count a task into the tables."""
        length = task.size
        task.fill(self._room(length))
        if isinstance(task, FileRange) and not self.tables.is_utf8(self._buffer, length):
            length = self._replace_invalid(length, task.range[0])
        if isinstance(self.tables, WordTables) and self.tables.can_scan:
            self.tables.count(self._buffer, length)
        else:
            self.tables.add(self._split(self._buffer[:length].tobytes()))
        if isinstance(task, FileRange):
            self.ranges.add(task.range)

    def _room(self, size: int) -> np.ndarray:
        if len(self._buffer) < size + BLOCK_PADDING:
            self._buffer = np.empty(size + size // 8 + BLOCK_PADDING, np.uint8)
        return self._buffer

    def _replace_invalid(self, length: int, number: int) -> int:
        data = self._buffer[:length].tobytes()
        text = data.decode("utf-8", "replace")
        self.invalid[number] = self.invalid.get(number, 0) + text.count("\ufffd") - data.count(_REPLACEMENT)
        valid = Texts(text.encode())
        valid.fill(self._room(valid.size))
        return valid.size

    def _split(self, data: bytes) -> Words:
        counter = PretokenCounter(self._pattern, self._special_tokens)
        for text in data.split(TEXT_END):
            counter.add([text.decode()])
        return words_of(counter.counts())


def _can_compile(pattern: str) -> bool:
    """Load all kernels of a training, or say why there are none."""
    try:
        prepare("count", "learn", *([SCANNERS[pattern][0]] if can_count(pattern) else []))
    except ImportError as error:
        logger.warning("numba cannot be imported (%s): words are counted in plain Python, slowly", error)
        return False
    return True


def default_workers(memory: int | None = None) -> int:
    """As many as there are processors for this process, and as have room in the memory."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return processors if memory is None else max(1, min(processors, memory // (8 * STEP)))


def _share_out(memory: int | None, workers: int) -> tuple[int, int | None]:
    """Bytes for the tables of each worker, and for the common ones. What these hold is listed before they are gone."""
    if memory is None:
        return TABLE_BYTES, None
    table_bytes = min(TABLE_BYTES, memory // (4 * workers))
    common_bytes = (memory - workers * (2 * STEP + table_bytes)) // 2
    if common_bytes < _LEAST_COMMON_BYTES:
        least = (workers * 2 * STEP + 2 * _LEAST_COMMON_BYTES) * 4 // 3
        raise ValueError(f"memory: {memory:,} bytes; {workers} workers need {least:,} at least")
    return table_bytes, common_bytes
