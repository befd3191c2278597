"""One reader per file format. Each gives documents, and the problems it met between them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from groundup.config import nearest, plural
from groundup.corpus.document import Document, Problem, Unreadable, printable
from groundup.corpus.stream import COMPRESSED, Limits, chunks, decode, split, without_lone_surrogates

SEPARATOR = "<|endoftext|>"
TEXT_FIELDS = ("text", "content")
_SAMPLE = 2**16
_MOST_CONTROL = 0.05
_CONTROL = bytes(b for b in range(32) if b not in b"\t\n\r\f\x1b") + b"\x7f"
_ROWS = 256

Items = Iterator[Document | Problem]
Reader = Callable[[Path, str | None, Limits], Items]


def reader_of(path: Path) -> Reader | None:
    """The reader for a file's name, compressed or not; None when there is none."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    suffix = Path(name).suffix
    return None if suffix == ".parquet" and name != path.name.lower() else READERS.get(suffix)


def supported() -> str:
    """The names that can be read, for a message."""
    return f"{' '.join(READERS)} (all but .parquet also with {' '.join(COMPRESSED)})"


def read_text(path: Path, text_field: str | None, limits: Limits) -> Items:
    """A text file is one document, or several with `<|endoftext|>` between them.

    Newlines at both ends of a document are not part of it; nothing else is changed.
    """
    for number, piece in enumerate(split(chunks(path, limits), SEPARATOR.encode(), limits.text_bytes)):
        source = f"{path}:{number}" if number else str(path)
        if piece.data is None:
            raise Unreadable(
                f"{path}: one document of {piece.length:,} bytes (most: {limits.text_bytes:,}); "
                f"put {SEPARATOR} between documents, or raise Limits.text_bytes"
            )
        _refuse_binary(piece.data, path, piece.offset)
        text, problem = decode(piece.data, source, piece.offset)
        if problem and problem.dropped:
            raise Unreadable(f"{path}: {problem.reason} ({problem.detail}); convert it to UTF-8 first")
        if problem:
            yield problem
        # White space after a separator, as at the end of a file, is no document.
        if number == 0 or text.strip():
            yield Document(text.strip("\r\n"), source)


def _refuse_binary(raw: bytearray, path: Path, offset: int) -> None:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise Unreadable(f"{path}: this is UTF-16 text; convert it to UTF-8 first")
    if (at := raw.find(b"\0")) >= 0:
        raise Unreadable(f"{path}: binary, not text (a zero byte at {offset + at:,})")
    sample = raw[:_SAMPLE]
    control = len(sample) - len(sample.translate(None, _CONTROL))
    if control > _MOST_CONTROL * len(sample):
        found = f"{plural(control, 'control character')} in {plural(len(sample), 'byte')}"
        raise Unreadable(f"{path}: binary, not text ({found})")


def read_jsonl(path: Path, text_field: str | None, limits: Limits) -> Items:
    """One JSON object per line. Lines that are not are given as problems with their number."""
    field = None
    for number, piece in enumerate(split(chunks(path, limits), b"\n", limits.record_bytes), start=1):
        source = f"{path}:{number}"
        if piece.data is None:
            yield Problem(source, "record too long", f"{piece.length:,} bytes; most {limits.record_bytes:,}")
        elif piece.data.strip():
            text, problem = decode(piece.data, source, piece.offset)
            if problem:
                yield problem
            if problem and problem.dropped:
                continue
            record = _parse(text, source)
            if isinstance(record, dict) and field is None:
                field = _choose_field(list(record), path, text_field)
            yield from _document(record, field, source)


def read_json(path: Path, text_field: str | None, limits: Limits) -> Items:
    """A whole file of JSON: an array of objects or of strings, or one object."""
    pieces = list(split(chunks(path, limits), SEPARATOR.encode(), limits.text_bytes))
    if any(piece.data is None for piece in pieces):
        raise Unreadable(f"{path}: more than {limits.text_bytes:,} bytes of JSON in one value; use .jsonl")
    raw = SEPARATOR.encode().join(piece.data for piece in pieces if piece.data is not None)
    text, problem = decode(raw, str(path))
    if problem:
        yield problem
    if problem and problem.dropped:
        return
    value = _parse(text, str(path)) if text.strip() else []
    if isinstance(value, Problem):
        raise Unreadable(f"{path}: {value.reason} ({value.detail})")
    field = None
    for number, record in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(record, dict) and field is None:
            field = _choose_field(list(record), path, text_field)
        record = {field or "text": record} if isinstance(record, str) else record
        yield from _document(record, field or "text", f"{path}:{number}")


def _parse(text: str, source: str) -> Any:
    """A JSON value, or the Problem with it. Strict: no NaN, no key twice, no number of 5,000 digits."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        return Problem(source, "JSON nested too deeply")
    except json.JSONDecodeError as error:
        return Problem(source, "malformed JSON", f"{error.msg} at character {error.pos:,}")
    except ValueError as error:
        return Problem(source, "malformed JSON", str(error))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _choose_field(fields: list[str], path: Path, wanted: str | None) -> str:
    """The field that holds the text: the one asked for, else `text`, else `content`."""
    if wanted is None:
        found = next((name for name in TEXT_FIELDS if name in fields), None)
        if found is not None:
            return found
        known = ", ".join(fields[:20]) or "none"
        raise Unreadable(printable(f"{path}: no field 'text' or 'content'; name one with text_field: {known}"))
    if wanted not in fields:
        raise Unreadable(printable(f"{path}: no field {wanted!r}{nearest(wanted, fields[:20])}"))
    return wanted


def _document(record: Any, field: str | None, source: str) -> Items:
    if isinstance(record, Problem):
        yield record
    elif not isinstance(record, dict):
        yield Problem(source, "not a JSON object", type(record).__name__)
    elif field not in record:
        yield Problem(source, "no text field", f"no {field!r} among {', '.join(list(record)[:20])}")
    elif not isinstance(record[field], str):
        yield Problem(source, "text is not a string", type(record[field]).__name__)
    else:
        text, repair = without_lone_surrogates(record[field], source)
        if repair:
            yield repair
        others = {k: v for k, v in record.items() if k != field and not isinstance(v, (dict, list))}
        yield Document(text, source, others)


def read_parquet(path: Path, text_field: str | None, limits: Limits) -> Items:
    """The text column of a Parquet file, a few rows at a time. Other columns are not read. Needs pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise Unreadable(f"{path}: reading .parquet needs pyarrow: pip install 'groundup[parquet]'") from error
    row = 0
    try:
        with (
            open(path, "rb") as raw,
            pyarrow.parquet.ParquetFile(raw, page_checksum_verification=True) as file,
        ):
            field = _choose_field(list(file.schema_arrow.names), path, text_field)
            kind = file.schema_arrow.field(field).type
            for batch in file.iter_batches(_ROWS, columns=[field]):
                for value in _as_bytes(batch.column(0), kind, path, field):
                    yield from _from_bytes(value, f"{path}:{row}")
                    row += 1
    except PermissionError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        detail = printable(str(error))
        raise Unreadable(f"{path}: broken Parquet data at row {row:,} or after ({detail})") from error


def _as_bytes(column: Any, kind: Any, path: Path, field: str) -> list[bytes | None]:
    import pyarrow

    if pyarrow.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise Unreadable(printable(f"{path}: column {field!r} holds {kind}, not strings"))
    return column.cast(pyarrow.large_binary()).to_pylist()  # not to str: its UTF-8 was never checked


def _from_bytes(value: bytes | None, source: str) -> Items:
    if value is None:
        yield Problem(source, "text is not a string", "null")
        return
    text, problem = decode(value, source)
    if problem:
        yield problem
    if problem is None or not problem.dropped:
        yield Document(text, source)


READERS: dict[str, Reader] = {
    ".txt": read_text,
    ".md": read_text,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
}
