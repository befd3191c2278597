"""Writing token shards: documents to ids, by the batch, and to files with a manifest."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from groundup.corpus import Document, read_documents
from groundup.data.shard_files import STATE, ShardFiles
from groundup.data.shard_progress import Counts, Keeper
from groundup.data.shards import FORMAT, MANIFEST, SHARD_NAME, ShardSet, fingerprint_of
from groundup.files import atomic_directory, resumable_directory, write_json
from groundup.tokenizer import Tokenizer

_BATCH = 2**23
_LONG_TEXT = 2**22
_PART = 2**18
_LONGEST_PATH = 512
log = logging.getLogger("groundup.data")


@runtime_checkable
class Encoder(Protocol):
    """The part of a `Tokenizer` that is needed here; any object that has it will do."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def end_of_text(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_iterable(self, iterable: Iterable[str]) -> Iterator[int]: ...


Texts = str | Path | Iterable[str | Path | Document]


def write_shards(
    texts: Texts,
    tokenizer: Tokenizer | Encoder,
    out_dir: str | Path,
    *,
    shard_tokens: int = 2**30,
    overwrite: bool = False,
    resume: bool = False,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> ShardSet:
    """Encode documents, each followed by end_of_text, into files of at most `shard_tokens` ids.

    texts: one path or several `Path`s (read with `corpus.read_documents`), or documents, or the texts
        themselves. A plain string alone is a path; strings in a list are texts.
    resume: keep what is written when this is interrupted or killed (in `.NAME.partial` beside `out_dir`), and
        go on from it when called again with the same texts and tokenizer; the result is the same, byte for byte.
    workers: threads that encode (default: one for each core); they change nothing in the result.
    progress: called with the bytes of text encoded so far.

    Ids are stored as uint16 where the vocabulary allows it (up to 65,536 tokens) and as uint32 beyond. The
    set takes its name only when it is whole: whatever interrupts the writing leaves nothing at `out_dir`.

    Raises ValueError for an id outside the vocabulary (naming the document), for no text at all, and where
    `out_dir` holds something already (`overwrite` replaces a shard set, and nothing else).
    """
    if shard_tokens < 1:
        raise ValueError(f"shard_tokens: {shard_tokens} (expected at least 1)")
    _check_target(Path(out_dir), overwrite)
    began = time.perf_counter()
    folder_of: Callable[..., AbstractContextManager[Path]] = resumable_directory if resume else atomic_directory
    with folder_of(out_dir) as folder:
        writer = ShardFiles(folder, _dtype(tokenizer.vocab_size), shard_tokens)
        job = {"tokenizer": tokenizer.fingerprint, "shard_tokens": shard_tokens}
        keeper = Keeper(folder, job, writer) if resume else None
        counts = _encode_all(_documents(texts), tokenizer, writer, keeper, workers, progress)
        writer.close()
        manifest = {
            "format": FORMAT,
            "dtype": writer.dtype.name,
            "vocab_size": tokenizer.vocab_size,
            "end_of_text": tokenizer.end_of_text,
            "tokenizer": tokenizer.fingerprint,
            "tokens": writer.tokens,
            **asdict(counts),
            "shards": writer.shards,
        }
        write_json(folder / MANIFEST, {**manifest, "fingerprint": fingerprint_of(manifest)})
        (folder / STATE).unlink(missing_ok=True)
    seconds = max(time.perf_counter() - began, 1e-9)
    rate = counts.text_bytes / seconds / 1e6
    log.info("%s bytes -> %s tokens, %.1f MB/s", f"{counts.text_bytes:,}", f"{writer.tokens:,}", rate)
    return ShardSet.open(out_dir, verify=False)


def _dtype(vocab_size: int) -> np.dtype:
    if not 0 < vocab_size <= 2**32:
        raise ValueError(f"vocabulary of {vocab_size:,} tokens: expected 1 to 2**32")
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def _check_target(out_dir: Path, overwrite: bool) -> None:
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise ValueError(f"{out_dir}: a file stands where the folder of shards would go")
    names = {p.name for p in out_dir.iterdir()}
    foreign = sorted(name for name in names if name != MANIFEST and not SHARD_NAME.fullmatch(name))
    if foreign:
        raise ValueError(f"{out_dir}: not empty, and not only shards (it holds {foreign[0]!r}); name a new folder")
    if names and not overwrite:
        raise ValueError(f"{out_dir}: holds shards already; open them with ShardSet.open, or pass overwrite=True")


def _documents(texts: Texts) -> Iterator[str]:
    if isinstance(texts, (str, Path)):
        yield from (document.text for document in read_documents(texts))
        return
    for item in texts:
        if isinstance(item, Path):
            yield from (document.text for document in read_documents(item))
        elif isinstance(item, Document):
            yield item.text
        elif _is_file(item):
            raise ValueError(f"text {item!r} is the name of a file: pass Path({item!r}) to read it")
        else:
            yield item


def _is_file(text: str) -> bool:
    return 0 < len(text) < _LONGEST_PATH and "\n" not in text and "\0" not in text and os.path.isfile(text)


def _encode_all(
    texts: Iterator[str],
    tokenizer: Tokenizer | Encoder,
    writer: ShardFiles,
    keeper: Keeper | None,
    workers: int | None,
    progress: Callable[[int], None] | None,
) -> Counts:
    """Encode and write everything; the counts of the manifest."""
    counts = Counts()
    if keeper:
        texts, counts = keeper.go_on(texts)
    for batch in _batches(texts):
        filled = [text for text in batch if text]
        for ids in _encode(filled, tokenizer, workers, counts.documents):
            writer.write(ids)
        counts.documents += len(filled)
        counts.empty_documents += len(batch) - len(filled)
        counts.text_bytes += sum(_bytes_in(text) for text in filled)
        if progress and filled:
            progress(counts.text_bytes)
        if keeper:
            keeper.saw(batch, counts)
    if not counts.documents:
        raise ValueError(
            "no text to write: there are no documents" + (", only empty ones" if counts.empty_documents else "")
        )
    return counts


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """Consecutive documents, of some megabytes together; one that is longer stands alone."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def _bytes_in(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _encode(texts: list[str], tokenizer: Tokenizer | Encoder, workers: int | None, number: int) -> Iterator[np.ndarray]:
    """The ids of documents, each with its end_of_text; `number` is that of the first."""
    if isinstance(tokenizer, Tokenizer):
        ids, offsets = tokenizer.encode_ragged(texts, workers=workers)
        yield np.insert(ids, offsets[1:], tokenizer.end_of_text)
        return
    for text in texts:
        for ids in _encode_one(text, tokenizer):
            yield _checked(ids, tokenizer, number)
        number += 1


def _encode_one(text: str, tokenizer: Encoder) -> Iterator[list[int]]:
    """The ids of a document and end_of_text: at once, or in blocks where one list would be large."""
    if len(text) <= _LONG_TEXT:
        yield [*tokenizer.encode(text), tokenizer.end_of_text]
        return
    parts = (text[i : i + _PART] for i in range(0, len(text), _PART))
    ids = chain(tokenizer.encode_iterable(parts), [tokenizer.end_of_text])
    while block := list(islice(ids, _PART)):
        yield block


def _checked(ids: list[int], tokenizer: Encoder, number: int) -> np.ndarray:
    array = np.array(ids, dtype=np.int64)
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= tokenizer.vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(f"document {number}: token id {wrong}, outside 0..{tokenizer.vocab_size - 1:,}")
    return array
