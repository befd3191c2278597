"""Files and folders to documents.

A file that is named must be readable, and an error says what is wrong with it. A file that is only found in a
named folder may be skipped, aloud. Reading that ends with no document at all is an error either way.
"""

import glob
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from groundup.config import near, plural
from groundup.corpus.document import Document, Problem, Tally, Unreadable, printable
from groundup.corpus.formats import Items, reader_of, supported
from groundup.corpus.stream import Limits

Paths = str | Path | Sequence[str | Path]
log = logging.getLogger("groundup.corpus")


def discover(paths: Paths) -> list[Path]:
    """The files that would be read: those named, and those with a known ending inside named folders, sorted.

    Hidden files and folders are passed over, links to folders are not followed, and no file is given twice.
    Raises FileNotFoundError with the nearest name for a missing path, ValueError where nothing can be read.
    """
    return [path for path, _ in _discover(paths) if reader_of(path)]


def read_documents(
    paths: Paths,
    *,
    text_field: str | None = None,
    on_problem: Callable[[Problem], None] | None = None,
    tally: Tally | None = None,
    limits: Limits | None = None,
) -> Iterator[Document]:
    """Read .txt, .md, .jsonl, .json (each also .gz, .xz, .zst) and .parquet files, and folders of them.

    text_field: the field of the text; by default `text`, or else `content`.
    on_problem: called with everything that is skipped or repaired; by default each kind of problem is logged
        once per file.
    tally: is filled as documents pass; at the end `seen == kept + skipped`.

    Paths are checked at once; documents are read as they are asked for, so a set can be larger than memory.
    Raises ValueError for a named file that cannot be read as text, or when no document is found.
    """
    files = _discover(paths)
    tally = tally if tally is not None else Tally()
    return _read(files, text_field, on_problem or _log_once(), tally, limits or Limits())


def _read(
    files: list[tuple[Path, bool]],
    text_field: str | None,
    on_problem: Callable[[Problem], None],
    tally: Tally,
    limits: Limits,
) -> Iterator[Document]:
    kept_before, first = tally.kept, None
    for path, named in files:
        before = tally.kept
        problem = None
        for item in _items(path, named, text_field, limits):
            if isinstance(item, Document):
                tally.keep()
                yield item
                continue
            problem = problem or (item if item.dropped else None)
            tally.note(item)
            on_problem(item)
        first = first or problem
        if named and tally.kept == before:
            raise ValueError(f"{printable(str(path))}: no document in this file; the first problem: {problem}")
    if tally.kept == kept_before:
        raise ValueError(f"no document in {plural(len(files), 'file')} ({tally}); the first problem: {first}")


def _items(path: Path, named: bool, text_field: str | None, limits: Limits) -> Items:
    """What a file's reader gives; blank documents, empty files and unreadable files become problems."""
    reader, found = reader_of(path), False
    if reader is None:
        yield Problem(str(path), "unknown kind of file")
        return
    try:
        for item in reader(path, text_field, limits):
            found = True
            blank = isinstance(item, Document) and not item.text.strip()
            yield Problem(item.source, "empty document") if blank else item
    except (Unreadable, OSError) as error:
        if named:
            raise
        yield Problem(str(path), "unreadable file", str(error))
        return
    if not found:
        yield Problem(str(path), "empty file")


def _discover(paths: Paths) -> list[tuple[Path, bool]]:
    """Every file with whether it was named itself (or only its folder was)."""
    named = [Path(p) for p in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if not named:
        raise ValueError("no files given")
    found: dict[Path, tuple[Path, bool]] = {}
    for path in named:
        if not path.exists():
            raise FileNotFoundError(_missing(path))
        inside = _walk(path) if path.is_dir() else [path]
        if path.is_dir() and not any(reader_of(p) for p in inside):
            raise ValueError(f"{printable(str(path))}: no file in this folder ends in {supported()}")
        if not path.is_dir():
            _check_named(path)
        for p in inside:
            found.setdefault(p.resolve(), (p, p == path))
    return list(found.values())


def _check_named(path: Path) -> None:
    name = printable(str(path))
    if not path.is_file():
        raise ValueError(f"{name}: not a regular file (a device or a pipe); write the text to a file first")
    if reader_of(path) is None:
        raise ValueError(f"{name}: cannot tell its format from {path.suffix!r}; expected {supported()}")


def _walk(root: Path) -> list[Path]:
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = (Path(folder, name) for name in sorted(names) if not name.startswith("."))
        files += [path for path in inside if path.is_file()]
    return files


def _missing(path: Path) -> str:
    name, parent = printable(str(path)), path.parent
    if path.is_symlink():
        return f"{name}: a link that leads nowhere"
    if set("*?") & set(name):
        return f"{name}: {_unmatched(path)}"
    if not parent.is_dir():
        return f"{name}: no such file, and no folder {printable(str(parent))}"
    names = [p.name for p in parent.iterdir() if not p.name.startswith(".")]
    where = "this folder" if parent == Path() else str(parent)
    return printable(f"{path}: no such file or folder{near(path.name, names, 3) or f'; {where} holds no name like it'}")


def _unmatched(pattern: Path) -> str:
    found = len(glob.glob(str(pattern)))
    if not found:
        return "this pattern matched nothing"
    return f"{plural(found, 'name')} would match, but the shell fills in patterns: write it without quotes"


def _log_once() -> Callable[[Problem], None]:
    said = set()

    def say(problem: Problem) -> None:
        key = (problem.source.rpartition(":")[0] or problem.source, problem.reason)
        if key not in said:
            said.add(key)
            log.warning("%s", problem)

    return say
