"""Counts on disk: which ranges of which files are counted, and the words so far. A killed run goes on from there."""

import hashlib
import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from groundup.files import write_atomic
from groundup.tokenizer.fast.merges import Words, room_for_words

logger = logging.getLogger(__name__)

Range = tuple[int, int, int]  # (number of the file, start, end)

VERSION = 2
_SEAL_BYTES, _NUMBER_BYTES = 32, 8
_EDGE_BYTES = 1 << 16


@dataclass
class Progress:
    """What is counted: ranges, the invalid sequences found in each file, and the words with their counts.

    Texts that are in no file are counted in order: the only range is then from 0 to their number, and `digest` is
    the hash of them all.
    """

    ranges: set[Range] = field(default_factory=set)
    invalid: dict[int, int] = field(default_factory=dict)
    words: Words = field(default_factory=lambda: room_for_words(0, 0))
    digest: str = ""


def job_of(paths: Sequence[Path], pattern: str, special_tokens: Collection[str], step: int) -> dict[str, Any]:
    """All that counts depend on: the files (size, time, ends), and how they are cut."""
    return {
        "version": VERSION,
        "files": [_identity(path) for path in paths],
        "pattern": pattern,
        "special_tokens": sorted(special_tokens),
        "step": step,
    }


def _identity(path: Path) -> list[Any]:
    if not path.is_file():
        raise ValueError(f"{path}: not a regular file, so counting it cannot go on after a stop; leave out the state")
    status = path.stat()
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read(_EDGE_BYTES))
        file.seek(max(0, status.st_size - _EDGE_BYTES))
        digest.update(file.read(_EDGE_BYTES))
    return [str(path.resolve()), status.st_size, status.st_mtime_ns, digest.hexdigest()]


def save(path: Path, job: dict[str, Any], progress: Progress) -> None:
    """Replace the file by this progress: after a kill or a power cut the old one is there, or the new one."""
    words = progress.words
    header = {
        "job": job,
        "ranges": sorted(progress.ranges),
        "invalid": sorted(progress.invalid.items()),
        "digest": progress.digest,
        "num_words": len(words),
        "num_bytes": len(words.text) - 256 - len(words),
    }
    encoded = json.dumps(header).encode()
    arrays = words.ends.tobytes() + words.counts.tobytes() + words.text[256:].tobytes()
    content = len(encoded).to_bytes(_NUMBER_BYTES, "little") + encoded + arrays
    write_atomic(path, hashlib.sha256(content).digest() + content)


def load(path: Path, job: dict[str, Any]) -> Progress:
    """The progress of this job; none when the file is not there, damaged, or of another job (a warning says so)."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Progress()
    if hashlib.sha256(content[_SEAL_BYTES:]).digest() != content[:_SEAL_BYTES]:
        logger.warning("%s: damaged, counting begins anew", path)
        return Progress()
    size = int.from_bytes(content[_SEAL_BYTES : _SEAL_BYTES + _NUMBER_BYTES], "little")
    arrays = _SEAL_BYTES + _NUMBER_BYTES + size
    header = json.loads(content[_SEAL_BYTES + _NUMBER_BYTES : arrays])
    if header["job"] != job:
        logger.warning("%s: of other files, or counted in another way; counting begins anew", path)
        return Progress()
    ranges = {(number, start, end) for number, start, end in header["ranges"]}
    words = _words(content[arrays:], header["num_words"], header["num_bytes"])
    return Progress(ranges, dict(header["invalid"]), words, header["digest"])


def _words(arrays: bytes, num_words: int, num_bytes: int) -> Words:
    words = room_for_words(num_words, num_bytes)
    numbers = np.frombuffer(arrays, np.int64, 2 * num_words)
    words.ends[:], words.counts[:] = numbers[:num_words], numbers[num_words:]
    words.text[256:] = np.frombuffer(arrays, np.uint8, offset=numbers.nbytes)
    return words
