"""The first stage: read what the user named, cut off the held-out part, and measure how hard the text is."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup import bundled
from groundup.accounting.plan import TextFacts
from groundup.build.settings import BuildSettings
from groundup.corpus import Document, Tally, discover, read_documents, split_held_out
from groundup.evaluation.baselines import zstd_bits_per_byte
from groundup.files import read_json, sha256, write_atomic, write_json
from groundup.tokenizer import Tokenizer

# Bytes of text per second of budget beyond which no planned model could read, so that they need not be loaded.
READ_BYTES_PER_SECOND = 150_000
# A megabyte measures a loss to a fraction of a per cent; scoring more only takes time.
MOST_HELD_OUT_BYTES = 1_000_000
# A text that is shorter than this has nothing to spare.
LEAST_VALIDATED_BYTES = 20_000
# 2 % of the text; of a short one up to 5 %, for 4 kB.
VALIDATION_FRACTION, MOST_VALIDATION_FRACTION = 0.02, 0.05
ENOUGH_VALIDATION_BYTES, MOST_VALIDATION_BYTES = 4_000, 100_000
DIFFICULTY_BYTES, DIFFICULTY_PIECES = 1 << 20, 16
HASHED_INPUTS = 10_000
PLAIN_TEXT = {".txt", ".md"}
SAMPLE_CHARACTERS = 10_000_000  # on which the ratio of a new tokenizer is measured


@dataclass(frozen=True)
class Text:
    """What the stages after this one work on.

    validation: what chooses between weights during training, so that nothing is ever chosen on the held-out text.
    """

    train: list[str]
    held_out: list[str]
    validation: list[str]
    facts: TextFacts
    manifest: dict[str, Any]
    notes: list[str]


def read_text(files: Sequence[str], settings: BuildSettings) -> Text:
    """Documents of the files (none named: the bundled corpus), split into a training and a held-out part.

    Raises ValueError or OSError, with the file and the remedy, when there is nothing to learn from.
    """
    paths = [Path(f) for f in files] or [bundled.path()]
    tally, limit = Tally(), int(settings.budget_seconds * READ_BYTES_PER_SECOND)
    documents, complete = _up_to(read_documents(paths, text_field=settings.text_field, tally=tally), limit)
    size = _count_bytes(d.text for d in documents)
    fraction = min(settings.held_out_fraction, MOST_HELD_OUT_BYTES / max(1, size))
    split = split_held_out(documents, fraction, settings.seed)
    notes = [split.note] if split.note else []
    if tally.skipped or tally.repaired:
        notes.append(f"reading: {tally}")
    if not complete:
        notes.append(f"reading stopped after {limit:,} bytes: more than can be trained on within the budget")
    learnt, validation = _part_validation(split.train, settings.seed)
    train, held_out = [d.text for d in learnt], [d.text for d in split.held_out]
    facts = TextFacts(
        train_bytes=_count_bytes(train),
        held_out_bytes=_count_bytes(held_out),
        documents=len(train),
        zstd_bits_per_byte=difficulty(train),
        validation_bytes=_count_bytes(d.text for d in validation),
    )
    manifest = _manifest(paths, facts, tally, bundled_text=not files)
    return Text(train, held_out, [d.text for d in validation], facts, manifest, notes)


def _part_validation(documents: list[Document], seed: int) -> tuple[list[Document], list[Document]]:
    """Part a little text from what is left to train on, by documents where there are enough of them."""
    size = _count_bytes(d.text for d in documents)
    if size < LEAST_VALIDATED_BYTES:
        return documents, []
    fraction = max(VALIDATION_FRACTION, min(MOST_VALIDATION_FRACTION, ENOUGH_VALIDATION_BYTES / size))
    split = split_held_out(documents, min(fraction, MOST_VALIDATION_BYTES / size), seed + 1, least=0)
    return split.train, split.held_out


def _up_to(documents: Iterator[Document], limit: int) -> tuple[list[Document], bool]:
    """Documents until `limit` bytes are reached, and whether these are all."""
    kept, size = [], 0
    for document in documents:
        kept.append(document)
        size += len(document.text.encode("utf-8", "replace"))
        if size >= limit:
            return kept, next(documents, None) is None
    return kept, True


def _count_bytes(texts: Iterable[str]) -> int:
    return sum(len(t.encode("utf-8", "replace")) for t in texts)


def difficulty(texts: Sequence[str]) -> float:
    """Bits per byte of zstd -19 on a megabyte in pieces spread evenly over the text.

    It is known before any tokenizer is, and tells the planner how hard this text is beside others.
    """
    data = "\n".join(texts).encode("utf-8", "replace")
    if len(data) > DIFFICULTY_BYTES:
        size = DIFFICULTY_BYTES // DIFFICULTY_PIECES
        starts = [i * (len(data) - size) // (DIFFICULTY_PIECES - 1) for i in range(DIFFICULTY_PIECES)]
        data = b"".join(data[start : start + size] for start in starts)
    return zstd_bits_per_byte([data.decode("utf-8", "replace")]).bits_per_byte


def _manifest(paths: Sequence[Path], facts: TextFacts, tally: Tally, bundled_text: bool) -> dict[str, Any]:
    files = discover(paths)
    return {
        "bundled": bundled_text,
        "inputs": [str(p.resolve()) for p in paths],
        "files": len(files),
        "hashes": {str(f): sha256(f) for f in files[:HASHED_INPUTS]},
        "documents": tally.kept,
        "train_bytes": facts.train_bytes,
        "held_out_bytes": facts.held_out_bytes,
        "validation_bytes": facts.validation_bytes,
        "licence": "public domain (State of the Union addresses)"
        if bundled_text
        else "not stated: the user's own files",
    }


def save_texts(path: Path, texts: Sequence[str]) -> None:
    """One JSON record per document, and the file's hash beside it: later stages measure on the same bytes."""
    lines = (json.dumps({"text": t}, ensure_ascii=True) + "\n" for t in texts)
    write_atomic(path, "".join(lines))
    write_json(path.with_suffix(".json"), {"documents": len(texts), "sha256": sha256(path)})


def load_texts(path: Path) -> list[str]:
    """What `save_texts` wrote. ValueError when the file is not what was written."""
    if read_json(path.with_suffix(".json"))["sha256"] != sha256(path):
        raise ValueError(
            f"{path}: it changed since this run began, so a score on it says nothing; restore it, or begin a new run"
        )
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def train_tokenizer_on_files(
    files: Sequence[str], vocab_size: int, special_tokens: Sequence[str], pattern: str, out: str, **options: Any
) -> dict[str, Any]:
    """Learn a vocabulary from files of any readable kind, save it, and say how well it packs the text.

    Plain text files are read in parts by all threads; other kinds document by document. `options` are those of
    `Tokenizer.train`: progress, workers, memory, state.
    """
    if all(Path(file).is_file() and Path(file).suffix in PLAIN_TEXT for file in files):
        tokenizer = Tokenizer.train(files, vocab_size, special_tokens, pattern, **options)
    else:
        texts = (document.text for document in read_documents(files))
        tokenizer = Tokenizer.train_from_iterator(texts, vocab_size, special_tokens, pattern, **options)
    tokenizer.save(out)
    sample = list(_head_of(document.text for document in read_documents(files)))
    ids, _ = tokenizer.encode_ragged(sample)
    return {
        "tokenizer": out,
        "vocab_size": tokenizer.vocab_size,
        "merges": len(tokenizer.merges),
        "bytes_per_token": round(_count_bytes(sample) / max(1, ids.size), 4),
    }


def _head_of(texts: Iterable[str]) -> Iterator[str]:
    """The first texts, up to some megabytes: enough to measure a ratio on."""
    room = SAMPLE_CHARACTERS
    for text in texts:
        yield text[:room]
        room -= len(text)
        if room <= 0:
            return
