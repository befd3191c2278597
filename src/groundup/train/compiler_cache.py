"""What a killed compilation leaves in torch's cache of compiled code, removed before it is found.

torch's compiler has libraries written under the names by which it looks for them. Where the linker is killed meanwhile,
a part of a library lies there for every later run, which cannot load it ("invalid ELF header"), ends with a bus error,
or takes the processor for one without vectors.

    header of the file    where the table of its sections begins, and how many entries that has
    ...                   sections
    table of sections     the end of the file: a file that ends before it, or has no header yet, is not whole
"""

import importlib
import logging
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger("groundup.train")

_KINDS = ("??/*.so", "??/*.o")
_HEADER = struct.Struct("<4s36xQ10xHH2x")
"""Of 64-bit ELF: magic number, where the table of sections begins, the size of an entry, their number."""


def remove_halves(folder: Path | None = None) -> list[Path]:
    """Remove the files of torch's cache (or of another folder like it) that are not whole; which those were.

    A file that a process is writing now is left to it. Nothing is looked at but on Linux, whose format it is.
    """
    if sys.platform != "linux":
        return []
    folder = _cache_folder() if folder is None else folder
    suspects = [path for kind in _KINDS for path in folder.glob(kind) if not is_whole(path)]
    removed = []
    for path in suspects:
        with _nobody_writes(folder / "locks" / f"{path.name.split('.')[0]}.lock") as alone:
            if alone and not is_whole(path):
                path.unlink(missing_ok=True)
                removed.append(path)
    if removed:
        names = ", ".join(path.name for path in removed[:3]) + ", ..." * (len(removed) > 3)
        logger.warning("%s: removed what a killed compilation left half-written: %s", folder, names)
    return removed


def is_whole(path: Path) -> bool:
    """Whether an ELF file has all that its header says. True where it cannot be read: that is somebody else's."""
    try:
        with open(path, "rb") as file:
            header = file.read(_HEADER.size)
        size = path.stat().st_size
    except OSError:
        return True
    if len(header) < _HEADER.size:
        return False
    magic, table, entry, count = _HEADER.unpack(header)
    return magic == b"\x7fELF" and table + entry * count <= size


def _cache_folder() -> Path:
    """torch's. Its compiler takes long to import, and is about to be."""
    return Path(importlib.import_module("torch._inductor.runtime.cache_dir_utils").cache_dir())


@contextmanager
def _nobody_writes(lock: Path) -> Iterator[bool]:
    """Whether the lock that torch's compiler holds while it writes is free; it is held meanwhile."""
    try:
        import fcntl

        lock.parent.mkdir(exist_ok=True)
        file = open(lock, "ab")  # noqa: SIM115 closed below
    except (ImportError, OSError):
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
