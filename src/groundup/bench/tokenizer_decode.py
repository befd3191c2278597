"""`groundup bench tokenizer-decode`: ids to bytes and text, beside gigatoken, tiktoken and Hugging Face's tokenizers.

Every program gets the ids in the form that it takes: an array, or a list where its interface wants one.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groundup.bench.tokenizer_checks import of_bytes
from groundup.bench.tokenizer_corpus import Corpus, prepare_vocabulary
from groundup.bench.tokenizer_options import arguments, run
from groundup.bench.tokenizer_race import OURS, RIVAL, SPEED, Cell, Try
from groundup.bench.tokenizer_turns import SEPARATOR
from groundup.tokenizer import Tokenizer

NAME = "tokenizer-decode"
MEGABYTES = 10.0

TO_BYTES = [
    Try(OURS, "decode_bytes_array", "decode_bytes of an array"),
    Try(OURS, "decode_bytes_list", "decode_bytes of a list"),
    Try(RIVAL, "decode_array", "decode of an array"),
    Try(RIVAL, "decode_list", "decode of a list"),
    Try("tiktoken", "decode_bytes", "decode_bytes of a list"),
]
TO_TEXT = [
    Try(OURS, "decode_text_array", "decode of an array"),
    Try(OURS, "decode_text_list", "decode of a list"),
    Try(RIVAL, "decode_text", "decode of an array, .decode()"),
    Try("tiktoken", "decode_text", "decode of a list"),
    Try("Hugging Face", "decode_text", "decode of a list"),
]


def plan(options: argparse.Namespace, corpus: Corpus, folder: Path) -> tuple[list[Cell], Cell, dict[str, Any]]:
    vocabulary = prepare_vocabulary(corpus, folder / "vocabulary")
    cut = corpus.cut(MEGABYTES)
    texts = cut.path.read_bytes().decode().split(SEPARATOR)
    ids = encode(Tokenizer.load(vocabulary.folder), texts)
    np.save(folder / "ids.npy", ids)
    shared = {
        "text": str(cut.path),
        "cut": str(cut),
        "ids": str(folder / "ids.npy"),
        "vocabulary": str(vocabulary.folder),
        "vocab_size": vocabulary.size,
        "end_of_text": vocabulary.end_of_text,
    }
    right = of_bytes(shared, (text.encode() for text in texts))
    cells = [
        Cell(f"{len(ids):,} ids to {kind}", 1, SPEED, cut.megabytes, tries, shared, "warm", "bytes", expected=right)
        for kind, tries in (("bytes", TO_BYTES), ("text", TO_TEXT))
    ]
    return cells, cells[0], {"vocabulary": vocabulary.facts, "ids": len(ids)}


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """The ids of all texts, one after the other: uint32 [n]."""
    return np.array([number for text in texts for number in tokenizer.encode(text)], dtype=np.uint32)


def main(argv: Sequence[str] = ()) -> int:
    """Ids to bytes and to text, beside gigatoken, tiktoken and Hugging Face's tokenizers."""
    return run(NAME, arguments(NAME, main.__doc__, argv, seconds=30.0), plan)
