"""Splitting documents into those to train on and those to measure on."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from groundup.config import plural
from groundup.corpus.document import Document, printable

LEAST_BYTES = 2_000
LEAST_HELD_OUT_BYTES = 20_000
_LEAST_DOCUMENTS = 20
_MOST_OF_SMALL_TEXT = 0.2
_BOUNDARIES = (b"\n\n", b"\n", b". ", b" ")


class Split(NamedTuple):
    """Training and held-out documents; `note` says how they were parted if not by whole documents."""

    train: list[Document]
    held_out: list[Document]
    note: str | None


def split_held_out(
    documents: Iterable[Document], fraction: float = 0.05, seed: int = 0, least: int = LEAST_HELD_OUT_BYTES
) -> Split:
    """Hold out about `fraction` of the bytes of text, by whole documents where there are enough of them.

    Documents are ranked by a hash of (seed, text): the choice does not depend on their order, and copies of
    one text are always on the same side. At least `least` bytes are held out, or a fifth of a text that has not
    five times as many: on less than 20 kB, a difference between two models drowns in noise.

    With fewer than 20 different documents, or one that is more than half of all text, the ends of the longest
    documents are held out instead, cut at a paragraph, and `note` says so: the score then speaks of text by
    the same authors, and is better than it would be on new documents.

    Raises ValueError when there is too little text (2 kB), or for a fraction outside (0, 0.5].
    """
    if not 0 < fraction <= 0.5:
        raise ValueError(f"fraction of text to hold out: {fraction} (expected more than 0, at most 0.5)")
    documents = list(documents)
    sizes = [len(_encode(d.text)) for d in documents]
    total = sum(sizes)
    if total < LEAST_BYTES:
        raise ValueError(
            f"{plural(total, 'byte')} of text in {plural(len(documents), 'document')}: too little to train and "
            f"measure on; at least {LEAST_BYTES:,} bytes are needed, and results mean something from about 1,000,000 on"
        )
    target = max(fraction * float(total), min(float(least), _MOST_OF_SMALL_TEXT * total))
    chosen = _choose(documents, sizes, target, seed)
    if chosen is None:
        return _cut(documents, target)
    keys = [_key(d.text, seed) for d in documents]
    return Split(
        [d for d, key in zip(documents, keys, strict=True) if key not in chosen],
        [d for d, key in zip(documents, keys, strict=True) if key in chosen],
        None,
    )


def _choose(documents: list[Document], sizes: list[int], target: float, seed: int) -> set[bytes] | None:
    """The hashes of the documents to hold out; None when whole documents cannot give about `target` bytes."""
    group_bytes: dict[bytes, int] = {}
    for document, size in zip(documents, sizes, strict=True):
        key = _key(document.text, seed)
        group_bytes[key] = group_bytes.get(key, 0) + size
    if len(group_bytes) < _LEAST_DOCUMENTS or max(group_bytes.values()) > 0.5 * sum(sizes):
        return None
    chosen, taken = set(), 0
    for key in sorted(group_bytes):
        if taken >= target:
            break
        if taken + group_bytes[key] <= 1.5 * target:
            chosen.add(key)
            taken += group_bytes[key]
    return chosen if taken >= 0.5 * target else None


def _key(text: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:".encode() + _encode(text)).digest()


def _cut(documents: list[Document], target: float) -> Split:
    """Hold out the ends of the fewest longest texts that together hold twice what is wanted."""
    copies: dict[str, int] = {}
    for document in documents:
        copies[document.text] = copies.get(document.text, 0) + 1
    by_size = sorted(copies, key=lambda text: (-len(_encode(text)) * copies[text], text))
    longest, held = [], 0
    for text in by_size:
        if held >= 2 * target:
            break
        longest.append(text)
        held += len(_encode(text)) * copies[text]
    parts = {text: _cut_text(text, min(0.5, target / held)) for text in longest}
    train, held_out = [], []
    for document in documents:
        head, tail = parts.get(document.text, (document.text, ""))
        train.append(replace(document, text=head))
        if tail:
            held_out.append(replace(document, text=tail))
    return Split(train, held_out, _note(len(copies), held_out, sum(len(_encode(d.text)) for d in held_out)))


def _note(different: int, held_out: list[Document], size: int) -> str:
    source = printable(held_out[0].source)
    where = source if len(held_out) == 1 else f"{len(held_out)} documents (one is {source})"
    count = "there is 1 document" if different == 1 else f"there are {different:,} documents of very unequal size"
    if 1 < different < _LEAST_DOCUMENTS:
        count = f"there are only {different} different documents"
    return (
        f"{count}, so the last {plural(size, 'byte')} of {where} were held out instead of whole documents: "
        "the score is for text like the rest of these documents, not for new ones"
    )


def _cut_text(text: str, fraction: float) -> tuple[str, str]:
    """Head and tail, about `fraction` of the bytes: cut at a paragraph, else line, sentence, word."""
    data = _encode(text)
    ideal = round(len(data) * (1 - fraction))
    slack = round(len(data) * fraction / 2)
    for boundary in _BOUNDARIES:
        before = data.rfind(boundary, ideal - slack, ideal)
        after = data.find(boundary, ideal, ideal + slack)
        near = [at + len(boundary) for at in (before, after) if at >= 0]
        if near:
            at = min(near, key=lambda at: abs(at - ideal))
            return _decode(data[:at]), _decode(data[at:])
    while ideal < len(data) and data[ideal] & 0xC0 == 0x80:  # never inside a character
        ideal += 1
    return _decode(data[:ideal]), _decode(data[ideal:])


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
