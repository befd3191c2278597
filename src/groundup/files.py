"""Writing files so that what has its final name is whole: temporary name, fsync, rename, fsync of the folder."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def fsync_directory(path: Path) -> None:
    """Make the names inside a folder durable. A rename is only safe from power loss after this."""
    with contextlib.suppress(PermissionError):  # Windows cannot open a folder
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_full(error: OSError) -> bool:
    """Whether a disk, a quota or a limit on file sizes took no more. The safetensors library only says so in words."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in str(error)


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let an OSError of a write say which file: the system's own (a full disk, a quota) names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_durably(path: Path, data: bytes) -> None:
    """Write and fsync, without the rename: for files inside a folder that is renamed as a whole."""
    with naming(path), open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Fill the yielded temporary file; on success it durably takes the name `path`, which an error leaves as it is."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        with naming(path):
            yield Path(temporary)
            _fsync(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def _fsync(path: str) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Replace `path` by `data`: readers see the old content or the new, never a part of it."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_directory(final: str | Path) -> Iterator[Path]:
    """Fill the yielded temporary folder; on success it takes the name `final` with everything durable.

    On an error (a full disk, Ctrl-C) the temporary folder is removed and `final` is as it was.
    An existing `final` is replaced: it is moved aside first, and removed last.
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.", suffix=".tmp"))
    try:
        yield temporary
        _fsync_tree(temporary)
        os.chmod(temporary, 0o755)
        _take_name(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def resumable_directory(final: str | Path) -> Iterator[Path]:
    """Like `atomic_directory`, but what an error or a kill leaves is kept, and yielded again by the next call.

    The folder is `.NAME.partial` beside `final`; whoever fills it must be able to tell what is in it.
    """
    final = Path(final)
    partial = final.with_name(f".{final.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    yield partial
    _fsync_tree(partial)
    _take_name(partial, final)


def _take_name(temporary: Path, final: Path) -> None:
    aside = final.with_name(f".{final.name}.old")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(final, aside)
    try:
        os.rename(temporary, final)
    except OSError:
        if aside.exists() and not final.exists():
            os.rename(aside, final)
        raise
    fsync_directory(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _fsync_tree(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDWR)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        else:
            fsync_directory(path)
    fsync_directory(root)


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_json(path: str | Path) -> Any:
    """Parse a JSON file. A broken one is a ValueError that names the file and the place."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: JSON has none."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def fresh_path(name: str, parent: Path = Path("runs")) -> Path:
    """runs/name, or the first free of runs/name-2, runs/name-3, ..."""
    taken = (parent / (name if n == 1 else f"{name}-{n}") for n in range(1, 10_000))
    return next(path for path in taken if not path.exists())


def sealed(body: dict[str, Any], *, compact: bool = False) -> bytes:
    """A JSON object with a SHA-256 of itself, which `read_sealed` holds it to. NaN and infinity are refused."""
    digest = hashlib.sha256(encode_json(body, compact=compact)).hexdigest()
    return encode_json(body | {"sha256": digest}, compact=compact)


def read_sealed(path: Path, *, compact: bool = False, most_bytes: int = 1 << 28) -> dict[str, Any]:
    """What `sealed` was given, with its hash. ValueError when a byte changed, a key stands twice, or it is too long."""
    if (size := path.stat().st_size) > most_bytes:
        raise ValueError(f"{path}: {size} bytes; at most {most_bytes} are read")
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object")
    # Comparing bytes, not values, also catches a flip that only changes white space or a digit's spelling.
    try:
        body = {key: each for key, each in value.items() if key != "sha256"}
        same = path.read_bytes() == sealed(body, compact=compact)
    except (ValueError, RecursionError):  # NaN or depth, which Python reads and no `sealed` ever wrote
        same = False
    if not same:
        raise ValueError(f"{path}: its own hash does not match: the file is damaged")
    return value


def encode_json(value: Any, *, compact: bool = False) -> bytes:
    """The one spelling that hashes are taken of. Compact: on one line, many times faster to make."""
    return (json.dumps(value, indent=None if compact else 1, sort_keys=True, allow_nan=False) + "\n").encode()
