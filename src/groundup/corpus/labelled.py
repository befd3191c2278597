"""Documents with their language, where the file says it: in a column, in a field, or in its own name."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from groundup.config import nearest
from groundup.corpus.document import Document, Unreadable, printable
from groundup.corpus.formats import TEXT_FIELDS
from groundup.corpus.reading import Paths, read_documents
from groundup.corpus.stream import COMPRESSED, Limits, chunks, decode, split

LANGUAGE_FIELDS = ("language", "lang")
# "de", "de-AT", "deu_Latn": the whole stem, or what stands after its last dot ("news.de.txt").
_LANGUAGE_NAME = re.compile(r"(?:^|\.)([a-z]{2}(?:[-_][A-Z]{2})?|[a-z]{3}_[A-Z][a-z]{3})$")
_RECORD_NUMBER = re.compile(r":\d+$")


def read_labelled(
    paths: Paths, *, text_field: str | None = None, language_field: str | None = None, limits: Limits | None = None
) -> Iterator[Document]:
    """Documents whose metadata has `file` and, where it is known, `language`.

    Everything that `read_documents` reads, and named .tsv files (also compressed): of two columns the language and
    the text, or with a first line that names them. JSON records may have a field `language` or `lang`
    (`language_field` names another). Otherwise a file named by a language (`de.txt`, `news.de.txt`, `deu_Latn.txt`)
    is in it. ValueError for a table without such columns, and for a wanted field that no record has.
    """
    for path in [Path(paths)] if isinstance(paths, (str, Path)) else map(Path, paths):
        if _plain_name(path).endswith(".tsv"):
            documents = _read_table(path, text_field, language_field, limits or Limits())
        else:
            documents = read_documents(path, text_field=text_field, limits=limits)
        yield from _labelled(documents, path, language_field)


def _labelled(documents: Iterator[Document], path: Path, language_field: str | None) -> Iterator[Document]:
    found, known = False, set()
    for document in documents:
        file = _RECORD_NUMBER.sub("", document.source)
        fields = document.metadata
        names = LANGUAGE_FIELDS if language_field is None else (language_field,)
        language = next((str(fields[name]) for name in names if fields.get(name)), None)
        found, known = found or language is not None, known | set(fields)
        language = language or language_of_name(file)
        yield replace(document, metadata={"file": file} | ({"language": language} if language else {}))
    if language_field is not None and not found:
        raise ValueError(printable(f"{path}: no record has a field {language_field!r}{nearest(language_field, known)}"))


def language_of_name(file: str | Path) -> str | None:
    """The language that a file is named by, or None.

    >>> language_of_name("texts/de.txt"), language_of_name("news.pt-BR.jsonl.gz"), language_of_name("notes.txt")
    ('de', 'pt-BR', None)
    """
    match = _LANGUAGE_NAME.search(_plain_name(Path(file), lower=False).rpartition(".")[0])
    return match[1] if match else None


def _plain_name(path: Path, lower: bool = True) -> str:
    """The name without the ending of its compression."""
    name = path.stem if path.suffix.lower() in COMPRESSED else path.name
    return name.lower() if lower else name


def _read_table(path: Path, text_field: str | None, language_field: str | None, limits: Limits) -> Iterator[Document]:
    """The rows of a tab-separated file; nothing is quoted in it. Rows without text are left out."""
    columns: tuple[int, int] | None = None
    for number, piece in enumerate(split(chunks(path, limits), b"\n", limits.record_bytes), start=1):
        if piece.data is None:
            raise Unreadable(f"{path}:{number}: a line of {piece.length:,} bytes; most {limits.record_bytes:,}")
        line, problem = decode(piece.data.removesuffix(b"\r"), f"{path}:{number}", piece.offset)
        if problem and problem.dropped:
            raise Unreadable(f"{path}:{number}: {problem.reason} ({problem.detail}); convert it to UTF-8 first")
        cells = line.split("\t")
        if columns is None:
            columns, is_header = _columns(cells, path, text_field, language_field)
            if is_header:
                continue
        language, text = columns
        if len(cells) <= max(columns):
            raise Unreadable(f"{path}:{number}: {len(cells)} columns; expected at least {max(columns) + 1}")
        if cells[text].strip():
            metadata = {language_field or LANGUAGE_FIELDS[0]: cells[language]}
            yield Document(cells[text], f"{path}:{number}", metadata)


def _columns(
    cells: Sequence[str], path: Path, text_field: str | None, language_field: str | None
) -> tuple[tuple[int, int], bool]:
    """The places of language and text, and whether the first line only names them."""
    languages = LANGUAGE_FIELDS if language_field is None else (language_field,)
    texts = TEXT_FIELDS if text_field is None else (text_field,)
    language = next((place for place, cell in enumerate(cells) if cell in languages), None)
    text = next((place for place, cell in enumerate(cells) if cell in texts), None)
    if language is not None and text is not None:
        return (language, text), True
    if text_field is None and language_field is None and len(cells) == 2:
        return (0, 1), False
    shown = ", ".join(map(repr, cells[:8]))
    raise Unreadable(
        printable(f"{path}: cannot tell language and text in the columns {shown}; name them in a first line")
    )
