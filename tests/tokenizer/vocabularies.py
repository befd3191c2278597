"""Vocabularies that others published, and what tests do with them.

They are not in the repository: `python scripts/fetch_vocabularies.py` puts them into `.vocabularies`, and the
environment variable GROUNDUP_VOCABULARIES names another folder. A test whose file is missing skips.
"""

import os
import random
import unicodedata
from pathlib import Path

import pytest

from groundup.tokenizer.bpe import PieceCache, apply_merges, rank_merges
from groundup.tokenizer.pretokenize import Pretokenizer
from tests.conftest import REPOSITORY
from tests.tokenizer.awkward import FRAGMENTS

FOLDER = Path(os.environ.get("GROUNDUP_VOCABULARIES") or REPOSITORY / ".vocabularies")
_CHARACTERS = "".join(c for c in map(chr, range(0x3000)) if unicodedata.category(c) not in ("Cn", "Cs"))


def path_of(name):
    """The path of a published vocabulary, or a skipped test."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{path} is missing; scripts/fetch_vocabularies.py fetches it")
    return path


def fuzzed(count, seed=0):
    """Awkward fragments in a row, and after them every kind of ending with white space."""
    chooser = random.Random(seed)
    for _ in range(count):
        parts = chooser.choices(FRAGMENTS, k=chooser.randrange(1, 12))
        parts.append("".join(chooser.choices(_CHARACTERS, k=chooser.randrange(4))))
        parts.append("".join(chooser.choices(" \n\r\t", k=chooser.randrange(5))))
        yield "".join(parts)


class Reference:
    """Encodes ordinary text by the definition in `Parts`, word by word."""

    def __init__(self, parts):
        ids = {token: token_id for token_id, token in parts.ordinary().items()}
        ranks = rank_merges(parts.listed_merges(), ids)
        self._bytes = {byte: ids[bytes([byte])] for byte in range(256) if bytes([byte]) in ids}
        if parts.merges is None:
            ranks = {pair: (token_id, token_id) for pair, (_, token_id) in ranks.items()}
        self._ids, self._ranks, self._parts = ids, ranks, parts
        self._pretokenizer = Pretokenizer(parts.pattern)
        self._cache = PieceCache(self._piece)

    def encode(self, text):
        if self._parts.normalizer:
            text = unicodedata.normalize(self._parts.normalizer, text)
        return [token for piece in self._pretokenizer.split(text) for token in self._cache[piece]]

    def _piece(self, piece):
        if self._parts.ignore_merges and piece.encode() in self._ids:
            return [self._ids[piece.encode()]]
        return apply_merges([self._bytes[byte] for byte in piece.encode() if byte in self._bytes], self._ranks)
