"""The tables of large vocabularies, kept from one process to the next.

Parsing a tokenizer.json and making its tables takes longer than encoding a hundred megabytes by them. What came of a
file is kept in the user's cache under the hash of the file, as a line of JSON and the arrays, and checked when read.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from groundup import __version__
from groundup.environ import cache_directory
from groundup.files import write_atomic
from groundup.tokenizer.definition import Outline
from groundup.tokenizer.fast.vocabulary_tables import Tables
from groundup.tokenizer.parts import MAX_FILE_BYTES

log = logging.getLogger(__name__)

SMALLEST = 1 << 14  # tokens: a smaller vocabulary is parsed in no time
_MOST_FILES = 12
_HASH_BYTES = 32


def digest_of(files: Sequence[Path], *arguments: Any) -> str | None:
    """What a tokenizer is known by: this code, the content of its files, and how they were asked to be read.

    None for what is not kept: a model's file, whose tokenizer is a small part of it, and what is too large or no file.
    """
    for file in files:
        if not file.is_file() or file.suffix == ".gguf" or file.stat().st_size > MAX_FILE_BYTES:
            return None
    digest = hashlib.sha256(repr((_code(), arguments)).encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest() + file.suffix.encode())
    return digest.hexdigest()[:32]


@cache
def _code() -> str:
    """The hash of the sources that decide what comes of a file."""
    digest = hashlib.sha256(__version__.encode())
    folder = Path(__file__).parent
    for source in sorted((*folder.glob("*.py"), folder / "fast" / "vocabulary_tables.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def load(digest: str) -> tuple[Outline, Tables] | None:
    """What was kept under this name, or None where nothing is, or nothing sound."""
    try:
        content = _path(digest).read_bytes()
        seal, body = content[:_HASH_BYTES], content[_HASH_BYTES:]
        if hashlib.sha256(body).digest() != seal:
            return None
    except OSError:
        return None
    end = body.index(b"\n") + 1
    header, data = json.loads(body[:end]), memoryview(body)[end:]
    arrays, start = {}, 0
    for name, kind, size in header["arrays"]:
        arrays[name] = np.frombuffer(data, np.dtype(kind), size, start)
        start += arrays[name].nbytes
    return Outline(**header["outline"]), Tables(**arrays, pairs_shift=header["pairs_shift"])


def keep(digest: str, outline: Outline, tables: Tables) -> None:
    """Write a tokenizer's tables to the cache, and remove the oldest beyond a dozen. A full disk is no error."""
    found = {f.name: getattr(tables, f.name) for f in fields(Tables) if f.name != "pairs_shift"}
    arrays = dict(sorted(found.items(), key=lambda item: -item[1].itemsize))  # which keeps each one aligned
    described = [(name, array.dtype.str, array.size) for name, array in arrays.items()]
    header = {"outline": asdict(outline), "pairs_shift": tables.pairs_shift, "arrays": described}
    line = json.dumps(header)
    line += " " * (-(len(line) + 1) % 64)  # the arrays begin at a multiple of 64 bytes
    body = f"{line}\n".encode() + b"".join(array.tobytes() for array in arrays.values())
    path = _path(digest)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, hashlib.sha256(body).digest() + body)
        for old in sorted(path.parent.glob("*.bin"), key=lambda p: p.stat().st_mtime)[:-_MOST_FILES]:
            old.unlink(missing_ok=True)
    except OSError as error:
        log.info("%s: cannot keep tables there (%s)", path.parent, error)


def _path(digest: str) -> Path:
    return cache_directory() / "tokenizers" / f"{digest}.bin"
