"""Training on files larger than memory: ranges of them are counted by several threads, then merges are learned.

The result depends on nothing but the texts: not on the number of workers, the order of the files, or where a run was
killed and went on. Memory is bounded: each worker has one range of a file and tables of limited size, which go to
common tables when they are full. Those, and learning, need memory for each different word, which is known when they
are counted; more than `memory` is an error, and not a machine that stops.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from groundup.tokenizer import bpe, count_state
from groundup.tokenizer.count_state import Range
from groundup.tokenizer.counting import read_text
from groundup.tokenizer.fast import merges
from groundup.tokenizer.fast.merges import Words
from groundup.tokenizer.pretokenize import Pretokenizer, SpecialSplitter, canonical, safe_chunks
from groundup.tokenizer.ranges import Cutter
from groundup.tokenizer.word_count import (
    STEP,
    TABLE_BYTES,
    FileRange,
    Task,
    Texts,
    WordCount,
    batches,
    default_workers,
)

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # (stage, done, total)

STATE_FILE = "counts.bin"
_SECONDS_BETWEEN_SAVES = 3.0
_GROUP_CHARACTERS = 1 << 25  # of texts that are held at a time
_SAVING_SHARE = 0.05  # of the time, at most


def estimate(files: Sequence[str | Path], vocab_size: int, workers: int = 1) -> dict[str, int]:
    """Bytes of memory that training will need at most at a time: {"blocks", "tables", "words", "learning", "total"}.

    The number of different words follows Heaps' law as web text in English does (2 n^0.65 in n bytes: 300 thousand in
    100 MB, 7 million in 12 GB). Text without words, as code or DNA, may need more: `memory` bounds it.
    """
    total = sum(_text_bytes(Path(file)) for file in files)
    num_words = int(min(total / 2, 2 * total**0.65)) + 1
    num_bytes = min(total, 9 * num_words)
    blocks = workers * 4 * min(STEP, total)
    tables = workers * min(TABLE_BYTES, 160 * num_words) + 160 * num_words
    words = 17 * num_words + num_bytes
    learning = words + merges.memory_needed(num_words + num_bytes, vocab_size)
    return {
        "blocks": blocks,
        "tables": tables,
        "words": words,
        "learning": learning,
        "total": max(blocks + tables + words, learning),
    }


def _text_bytes(path: Path) -> int:
    """The bytes of a file's text; a compressed file is taken to be a quarter of it."""
    return path.stat().st_size * (4 if path.suffix in (".gz", ".xz", ".zst") else 1)


def describe(needed: dict[str, int]) -> str:
    """An estimate in words.

    >>> describe({"blocks": 4 << 20, "tables": 9 << 20, "words": 0, "learning": 5 << 20, "total": 13 << 20})
    'memory: about 13 MiB (counting 13, then learning 5)'
    """
    counting = needed["blocks"] + needed["tables"] + needed["words"]
    total, counting, learning = (-(-number // 2**20) for number in (needed["total"], counting, needed["learning"]))
    return f"memory: about {total:,} MiB (counting {counting:,}, then learning {learning:,})"


def train(
    files: Sequence[str | Path],
    vocab_size: int,
    special_tokens: Sequence[str] = (),
    pattern: str | None = "gpt2",
    progress: Progress | None = None,
    *,
    workers: int | None = None,
    memory: int | None = None,
    state: str | Path | None = None,
) -> list[tuple[bytes, bytes]]:
    """The merges for a vocabulary of so many bytes, merges and special tokens.

    With a folder for `state`, a run that was killed goes on where it was; the folder's file is removed in the end.
    """
    needed = estimate(files, vocab_size, workers or default_workers(memory))
    logger.info("%s", describe(needed))
    words = count_files(files, special_tokens, pattern, progress, workers=workers, memory=memory, state=state)
    learned = learn(words, vocab_size - 256 - len(special_tokens), progress, memory=memory)
    if state is not None:
        forget(state)
    return learned


def learn(
    words: Words, num_merges: int, progress: Progress | None = None, *, memory: int | None = None
) -> list[tuple[bytes, bytes]]:
    """The merges that BPE learns from words, as `bpe.learn_merges`.

    ValueError when that needs more than `memory` bytes, or than this machine has.
    """
    memory = memory if memory is not None else _physical_bytes()
    needed = words.text.nbytes + 16 * len(words) + merges.memory_needed(len(words.text), num_merges)
    if memory is not None and needed > memory:
        raise ValueError(
            f"memory: learning from {len(words):,} different words of {len(words.text):,} bytes needs {needed:,} "
            f"bytes, and {memory:,} are allowed; allow more, or take less text"
        )
    report = (lambda done, total: progress("merging", done, total)) if progress else None
    try:
        return merges.learn_merges(words, num_merges, report)
    except ImportError as error:
        logger.warning("numba cannot be imported (%s): merges are learned in plain Python, slowly", error)
        return bpe.learn_merges(dict(words.items()), num_merges, report)


def _physical_bytes() -> int | None:
    """The memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def count_files(
    files: Sequence[str | Path],
    special_tokens: Sequence[str] = (),
    pattern: str | None = "gpt2",
    progress: Progress | None = None,
    *,
    workers: int | None = None,
    memory: int | None = None,
    state: str | Path | None = None,
) -> Words:
    """How often each pre-token occurs in UTF-8 files.

    Each invalid sequence is read as U+FFFD; a warning says how many there were. With a folder for `state`, what is
    counted is kept there every few seconds, and a later call for the same files goes on from it. ValueError when the
    different words need more than `memory` bytes; OSError when a file cannot be read.
    """
    paths = [Path(file) for file in files]
    counting = WordCount(pattern, special_tokens, workers, memory, _SECONDS_BETWEEN_SAVES if state else float("inf"))
    saving = _Saving(Path(state), count_state.job_of(paths, counting.pattern, special_tokens, STEP)) if state else None
    before = saving.load() if saving else count_state.Progress()
    counting.go_on_from(before)
    done, total = sum(end - start for _, start, end in before.ranges), sum(path.stat().st_size for path in paths)
    for size in counting.run(_tasks(paths, pattern, special_tokens, before.ranges)):
        done += size
        if progress:
            progress("reading", done, total)
        if saving and saving.is_due():
            saving.save(counting.progress())
    after = counting.progress()
    if saving:
        saving.save(after)
    for number, invalid in sorted(after.invalid.items()):
        logger.warning("%s: %d invalid UTF-8 sequences were read as U+FFFD", paths[number], invalid)
    return after.words


def count_texts(
    texts: Iterable[str],
    special_tokens: Sequence[str] = (),
    pattern: str | None = "gpt2",
    progress: Progress | None = None,
    *,
    workers: int | None = None,
    memory: int | None = None,
    state: str | Path | None = None,
) -> Words:
    """How often each pre-token occurs in texts, each a document of its own. Otherwise as `count_files`.

    Going on from a `state`, the texts that were counted are read once more, to see that they are the same;
    ValueError when they are not. `progress` is told the bytes so far, and 0 for their unknown total.
    """
    job = {"texts": count_state.VERSION, "pattern": canonical(pattern), "special_tokens": sorted(special_tokens)}
    saving = _Saving(Path(state), job) if state else None
    known = saving.load() if saving else count_state.Progress()
    source, seen = iter(texts), _Seen()
    for text in islice(source, sum(end for _, _, end in known.ranges)):
        seen.add(text)
    if known.digest != (seen.digest if known.ranges else ""):
        raise ValueError(f"{state}: holds the counts of other texts; remove it, or name another folder")
    while group := list(_group(source)):
        counting = WordCount(pattern, special_tokens, workers, memory)
        counting.go_on_from(count_state.Progress(words=known.words))
        for size in counting.run(batches(group)):
            seen.size += size
            if progress:
                progress("reading", seen.size, 0)
        known = counting.progress()
        if saving:
            for text in group:
                seen.add(text)
            known.ranges, known.digest = {(0, 0, seen.count)}, seen.digest
            if saving.is_due():
                saving.save(known)
    if saving:
        saving.save(known)
    return known.words


class _Seen:
    """Texts that went by: how many, their bytes, and the hash of them all."""

    def __init__(self) -> None:
        self.count = self.size = 0
        self._hash = hashlib.sha256()

    def add(self, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        self._hash.update(len(data).to_bytes(8, "little") + data)
        self.count += 1

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def _group(texts: Iterator[str]) -> Iterator[str]:
    """The next texts, of some megabytes together."""
    size = 0
    while size < _GROUP_CHARACTERS and (text := next(texts, None)) is not None:
        size += len(text)
        yield text


def _tasks(
    paths: Sequence[Path], pattern: str | None, special_tokens: Sequence[str], done: Collection[Range]
) -> Iterator[Task]:
    """The files in parts, without those that are done. What cannot be read twice (a pipe) is read in order."""
    cutter = Cutter(pattern, special_tokens)
    for number, path in enumerate(paths):
        if path.is_file() or path.is_dir():
            for start, end in cutter.ranges(path, STEP):
                if (number, start, end) not in done:
                    yield FileRange(path, (number, start, end))
        else:
            specials = SpecialSplitter(special_tokens)
            for chunk in safe_chunks(read_text(path), Pretokenizer(pattern), specials, STEP):
                yield Texts(chunk.encode())


def forget(state: str | Path) -> None:
    """Remove what `count_files` kept in a folder."""
    (Path(state) / STATE_FILE).unlink(missing_ok=True)


class _Saving:
    """Keeps the progress of a job in a file, every now and then."""

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._job = folder / STATE_FILE, job
        self._due = time.monotonic() + _SECONDS_BETWEEN_SAVES

    def load(self) -> count_state.Progress:
        return count_state.load(self._path, self._job)

    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    def save(self, progress: count_state.Progress) -> None:
        started = time.monotonic()
        count_state.save(self._path, self._job, progress)
        ended = time.monotonic()
        self._due = ended + max(_SECONDS_BETWEEN_SAVES, (ended - started) / _SAVING_SHARE)
