"""`groundup bench tokenizer-encode`: text to ids, beside gigatoken, tiktoken and Hugging Face's tokenizers.

The vocabulary is GPT-2's where its files are found, else one trained on the text. Outputs must be the same ids.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from groundup.bench.tokenizer_corpus import Corpus, Cut, Vocabulary, prepare_vocabulary
from groundup.bench.tokenizer_options import arguments, run
from groundup.bench.tokenizer_race import MICROSECONDS, OURS, RIVAL, SECONDS, SPEED, Cell, Try

NAME = "tokenizer-encode"
SLOW_MEGABYTES = 10.0
SMALL_MEGABYTES = (1.0, 10.0)
NUM_STRINGS = 1000

DOCUMENTS = [
    Try(OURS, "encode_ragged", "encode_ragged", "one array of ids, and offsets"),
    Try(RIVAL, "batch", "encode_batch", "one array of ids, and offsets"),
]
IN_MEMORY = [
    *DOCUMENTS,
    Try(OURS, "encode_bytes_ragged", "encode_bytes_ragged", "given bytes objects"),
    Try(RIVAL, "batch_source", "encode_batch of a BytesSource", "given one buffer of bytes"),
]
FILES = [
    Try(OURS, "encode_file", "encode_file"),
    Try(RIVAL, "files_whole", "encode_files, one document"),
    Try(RIVAL, "files_split", "encode_files, cut at the separator"),
]
LISTS = [
    Try(OURS, "encode_batch", "encode_batch"),
    Try(RIVAL, "batch_list", "encode_batch_list"),
]
STRING = [
    Try(OURS, "encode_one", "encode", "a list of ids"),
    Try(OURS, "encode_one_array", "encode_array", "an array of ids"),
    Try(RIVAL, "encode_one", "encode", "an array of ids"),
    Try("tiktoken", "encode_one", "encode_ordinary", "a list of ids"),
    Try("Hugging Face", "encode_one", "encode", "a list of ids"),
]
STRINGS = [
    Try(OURS, "encode_many", "encode", "a list of ids"),
    Try(OURS, "encode_many_arrays", "encode_array", "an array of ids"),
    Try(RIVAL, "encode_many", "encode", "an array of ids"),
    Try("tiktoken", "encode_many", "encode_ordinary", "a list of ids"),
    Try("Hugging Face", "encode_many", "encode", "a list of ids"),
]


def cells(corpus: Corpus, vocabulary: Vocabulary, threads: Sequence[int]) -> list[Cell]:
    """The headline first: documents in memory, the tokenizer warm, the fewest threads."""
    made = [cell for count in threads for cell in whole_text(corpus, vocabulary, count)]
    for megabytes in SMALL_MEGABYTES:
        if megabytes < corpus.whole.megabytes:
            cut = corpus.cut(megabytes)
            options = options_of(cut, vocabulary)
            made.append(Cell(f"documents, {cut}, warm", min(threads), SPEED, cut.megabytes, DOCUMENTS, options))
    return [*made, *strings(corpus, vocabulary)]


def whole_text(corpus: Corpus, vocabulary: Vocabulary, threads: int) -> list[Cell]:
    """Every state and every form of the output. Slow programs get less of the text; their speed is shown."""
    slow = corpus.cut(SLOW_MEGABYTES)
    on_slow = {"text": str(slow.path), "amount": slow.megabytes, "cut": str(slow)}
    tiktoken = Try("tiktoken", "batch", "encode_ordinary_batch", "lists of ids", on_slow)
    huggingface = Try("Hugging Face", "batch", "encode_batch_fast", "its Encoding objects", on_slow)
    megabytes, options = corpus.whole.megabytes, options_of(corpus.whole, vocabulary)
    return [
        Cell("documents, warm", threads, SPEED, megabytes, [*IN_MEMORY, tiktoken, huggingface], options),
        Cell("file, warm", threads, SPEED, megabytes, FILES, options),
        Cell("documents, cold", threads, SPEED, megabytes, IN_MEMORY, options, "cold"),
        Cell("documents, new tokenizer", threads, SPEED, megabytes, IN_MEMORY, options, "new"),
        Cell("lists of int, warm", threads, SPEED, megabytes, [*LISTS, tiktoken], options),
        Cell("file, fresh process", threads, SECONDS, 1.0, FILES, options, "fresh"),
    ]


def strings(corpus: Corpus, vocabulary: Vocabulary) -> list[Cell]:
    """One thread, whatever the number of cores: a string is too short to share."""
    cut = corpus.cut(min(SMALL_MEGABYTES))
    one = options_of(cut, vocabulary) | {"input": "one string", "num_strings": 1}
    many = options_of(cut, vocabulary) | {"input": "many strings", "num_strings": NUM_STRINGS}
    return [
        Cell("one string of 200 characters, again and again", 1, MICROSECONDS, 1, STRING, one),
        Cell("strings of 200 characters, 1,000 different ones", 1, MICROSECONDS, NUM_STRINGS, STRINGS, many),
    ]


def options_of(cut: Cut, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "text": str(cut.path),
        "cut": str(cut),
        "vocabulary": str(vocabulary.folder),
        "vocab_size": vocabulary.size,
        "end_of_text": vocabulary.end_of_text,
    }


def plan(options: argparse.Namespace, corpus: Corpus, folder: Path) -> tuple[list[Cell], Cell, dict[str, Any]]:
    vocabulary = prepare_vocabulary(corpus, folder / "vocabulary")
    made = cells(corpus, vocabulary, options.threads)
    return made, made[0], {"vocabulary": vocabulary.facts}


def main(argv: Sequence[str] = ()) -> int:
    """Text to ids, beside gigatoken, tiktoken and Hugging Face's tokenizers, with the same ids from all."""
    return run(NAME, arguments(NAME, main.__doc__, argv, seconds=120.0), plan)
