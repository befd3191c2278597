"""`groundup bench tokenizer-train`: learning a vocabulary, beside gigatoken, Hugging Face's tokenizers and others.

Same text, pattern (GPT-2's) and number of tokens. Trainers break ties in ways of their own, so the vocabularies are
compared, and the share of tokens in common is given.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from groundup.bench.tokenizer_corpus import Corpus
from groundup.bench.tokenizer_options import arguments, run
from groundup.bench.tokenizer_race import OURS, RIVAL, SECONDS, SLOW_ROUNDS, Cell, Try

NAME = "tokenizer-train"
VOCAB_SIZES = (32_000, 10_000)  # the first is that of the headline
QUICK_SIZES = (1_000, 512)
WARM_UP_MEGABYTES, WARM_UP_SIZE = 1.0, 1_000

FROM_FILE = [
    Try(OURS, "train", "train"),
    Try(RIVAL, "train_file", "train_bpe"),
]
FAST = [*FROM_FILE, Try(RIVAL, "train_bytes", "train_bpe of bytes in memory")]
SLOW = [
    *FROM_FILE,
    Try("rustbpe", "train", "train_from_iterator", "texts in memory"),
    Try("Hugging Face", "train", "train_from_iterator", "texts in memory"),
    Try("bpeasy", "train", "train_bpe", "texts in memory"),
    Try("sentencepiece", "train", "train", "merges characters inside words of a line, not bytes: another algorithm"),
]


def cells(corpus: Corpus, sizes: Sequence[int], threads: Sequence[int]) -> list[Cell]:
    """The headline first. The slow programs have a cell of their own, at the first size: they take minutes."""
    fast = [cell for size in sizes for count in threads for cell in fast_cells(corpus, size, count)]
    return [*fast, *(slow_cell(corpus, sizes[0], count) for count in threads)]


def fast_cells(corpus: Corpus, size: int, threads: int) -> list[Cell]:
    title, options = f"{size:,} tokens", options_of(corpus, size)
    return [
        Cell(f"{title}, warm", threads, SECONDS, 1.0, FAST, options, check_kind="tokens"),
        Cell(f"{title}, fresh process", threads, SECONDS, 1.0, FROM_FILE, options, "fresh", "tokens"),
    ]


def slow_cell(corpus: Corpus, size: int, threads: int) -> Cell:
    small = corpus.cut(WARM_UP_MEGABYTES)
    warm_up = {"text": str(small.path), "vocab_size": min(size, WARM_UP_SIZE)}
    options = options_of(corpus, size) | {"warm_up": warm_up}
    title = f"{size:,} tokens, all trainers"
    return Cell(title, threads, SECONDS, 1.0, SLOW, options, check_kind="tokens", slow=True)


def options_of(corpus: Corpus, size: int) -> dict[str, Any]:
    return {"text": str(corpus.whole.path), "cut": str(corpus.whole), "vocab_size": size}


def plan(options: argparse.Namespace, corpus: Corpus, _: Path) -> tuple[list[Cell], Cell, dict[str, Any]]:
    sizes = QUICK_SIZES if options.quick else VOCAB_SIZES
    made = cells(corpus, sizes, options.threads)
    return made, made[0], {"vocab_sizes": list(sizes), "rounds_of_all_trainers": SLOW_ROUNDS}


def main(argv: Sequence[str] = ()) -> int:
    """Learning a vocabulary, beside gigatoken, rustbpe, Hugging Face's tokenizers, bpeasy and sentencepiece."""
    return run(NAME, arguments(NAME, main.__doc__, argv, seconds=100.0), plan)
