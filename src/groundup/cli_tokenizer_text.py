"""What the actions of `groundup tokenizer` read: named tokenizers, and text with its file and language."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from groundup.cli_parts import Arguments, Parser, number

if TYPE_CHECKING:
    from groundup.tokenizer import Tokenizer
    from groundup.tokenizer.compare import Sample


def load_named(paths: Sequence[str]) -> dict[str, "Tokenizer"]:
    """The tokenizers by the shortest names that tell them apart: of the file or folder, or else the path."""
    from groundup.tokenizer import Tokenizer

    short = [path.parent.name if path.name == "tokenizer.json" else path.stem for path in map(Path, paths)]
    names = [name if name and short.count(name) == 1 else path for name, path in zip(short, paths, strict=True)]
    return {name: Tokenizer.load(path) for name, path in zip(names, paths, strict=True)}


def add_text(parser: Parser, without: str) -> None:
    """The options that name texts and say how to read them; `without` files, it is something else."""
    add = parser.add_argument
    add("files", nargs="*", metavar="FILES",
        help=".txt .md .jsonl .parquet, folders, or .tsv with the columns language and text "
             f"(default: {without})")  # fmt: skip
    add("--text-field", metavar="NAME", help="field or column that holds the text (default: text, else content)")
    add("--language-field", metavar="NAME",
        help="field or column that holds the language (default: language, else lang, else the file's name if it is "
             "a language's, such as de.txt)")  # fmt: skip
    add("--limit-mb", type=number, default=64.0, metavar="X",
        help="read no more than so many million bytes of text (default: %(default)s)")  # fmt: skip


def read_samples(options: Arguments) -> list["Sample"]:
    """The named text with file and language of each document, up to the limit."""
    from groundup import bundled
    from groundup.corpus.labelled import read_labelled
    from groundup.tokenizer.compare import Sample, in_blocks

    samples, size = [], 0
    paths = options.files or [bundled.path()]
    for document in read_labelled(paths, text_field=options.text_field, language_field=options.language_field):
        samples.append(Sample(document.text, document.metadata["file"], document.metadata.get("language")))
        size += len(document.text.encode("utf-8", "replace"))
        if size >= options.limit_mb * 1e6:
            print(f"read the first {options.limit_mb:g} MB only; --limit-mb sets how much", file=sys.stderr)
            break
    return in_blocks(samples)


def size_of(samples: Sequence["Sample"]) -> int:
    """Bytes of UTF-8."""
    return sum(len(sample.text.encode("utf-8", "replace")) for sample in samples)


def add_learning(parser: Parser) -> None:
    """The options that say how, and from what part of the texts, to learn."""
    add = parser.add_argument
    add("--pattern", default="gpt2",
        help="how words are cut: gpt2, gpt4, o200k, none or a regular expression (default: %(default)s)")  # fmt: skip
    add("--train-fraction", type=number, default=0.8, metavar="X",
        help="share of each file and language, its beginning, to learn from; the rest is measured "
             "(default: %(default)s)")  # fmt: skip
