"""`groundup tokenizer ACTION`: a table of actions. Each file named `cli_tokenizer_` has the longer ones."""

import io
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup import cli_tokenizer_measure as measure
from groundup.cli_parts import Arguments, Parser, Verb, print_json, progress_line, whole_number
from groundup.cli_tokenizer_audit import audit, audit_options
from groundup.cli_tokenizer_text import load_named
from groundup.config import plural

if TYPE_CHECKING:
    from groundup.tokenizer import Tokenizer

# Learned for the page when no tokenizer is named: from the beginning of the bundled text, in about a second.
EXAMPLE_VOCAB_SIZE, EXAMPLE_CHARACTERS = 4096, 1_000_000


def options(parser: Parser) -> None:
    """The actions and their options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, action in ACTIONS.items():
        action.options(actions.add_parser(name, help=action.summary, description=action.summary, allow_abbrev=False))


def run(options: Arguments) -> int:
    """Run the action that was asked for; returns its exit code."""
    return ACTIONS[options.action].run(options)


# train, encode, decode -------------------------------------------------------------------------------------------


def _train_options(parser: Parser) -> None:
    add = parser.add_argument
    add("files", nargs="+", help=".txt .md .jsonl .parquet or folders")
    add("--vocab-size", type=whole_number, default=4096, metavar="N",
        help="tokens in the vocabulary (default: %(default)s)")  # fmt: skip
    add("--pattern", default="gpt2",
        help="gpt2, gpt4, o200k, llama3, qwen2, smollm, none or a regular expression "
             "(default: %(default)s)")  # fmt: skip
    add("--special-tokens", nargs="*", default=["<|endoftext|>"], metavar="TOKEN",
        help="markers that are one token each (default: <|endoftext|>)")  # fmt: skip
    add("--workers", type=whole_number, metavar="N", help="threads that count (default: one for each core)")
    add(
        "--memory",
        type=whole_number,
        metavar="MIB",
        help="memory that counting and learning may take (default: no bound but the machine's)",
    )
    add(
        "--state",
        metavar="FOLDER",
        help="keep there what is counted: a run that was killed goes on from it (default: nothing is kept)",
    )
    add("--out", required=True, help="folder or .json file to write")
    add("--json", action="store_true", help="end with one JSON line")


def _train(options: Arguments) -> int:
    from groundup.build.text import train_tokenizer_on_files
    from groundup.tokenizer import training

    memory = options.memory * 2**20 if options.memory else None
    workers = options.workers or training.default_workers(memory)
    if all(Path(file).is_file() for file in options.files):
        print(training.describe(training.estimate(options.files, options.vocab_size, workers)))
    with progress_line() as show:
        summary = train_tokenizer_on_files(options.files, options.vocab_size, options.special_tokens, options.pattern,
                                           options.out, progress=show, workers=workers, memory=memory,
                                           state=options.state)  # fmt: skip
    size = plural(summary["vocab_size"], "token")
    print(f"{options.out}: {size}, {summary['bytes_per_token']:.2f} bytes per token")
    if options.json:
        print_json(summary)
    return 0


def _encode_options(parser: Parser) -> None:
    parser.add_argument("tokenizer", help="folder or tokenizer.json")
    parser.add_argument("text", help="the text, or - for standard input")


def _encode(options: Arguments) -> int:
    from groundup.tokenizer import Tokenizer

    text = _standard_input() if options.text == "-" else options.text
    print(*Tokenizer.load(options.tokenizer).encode(text))
    return 0


def _standard_input() -> str:
    """All of it, line ends as they are."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(newline="")
    return sys.stdin.read()


def _decode_options(parser: Parser) -> None:
    parser.add_argument("tokenizer", help="folder or tokenizer.json")
    parser.add_argument("ids", nargs="+", type=whole_number, help="the ids, with spaces between")


def _decode(options: Arguments) -> int:
    from groundup.tokenizer import Tokenizer

    print(Tokenizer.load(options.tokenizer).decode(options.ids))
    return 0


# explore, convert ------------------------------------------------------------------------------------------------


def _explore_options(parser: Parser) -> None:
    add = parser.add_argument
    add("files", nargs="*", metavar="TOKENIZER",
        help="folders or tokenizer.json files (default: one that is learned from the bundled text)")  # fmt: skip
    add("--out", default="tokenizers.html", metavar="PAGE", help="the page to write (default: %(default)s)")


def _explore(options: Arguments) -> int:
    from groundup.tokenizer.explorer import write_page

    tokenizers = load_named(options.files) if options.files else {"BPE": _example()}
    print(write_page(tokenizers, Path(options.out)))
    return 0


def _example() -> "Tokenizer":
    from groundup import bundled
    from groundup.corpus import read_documents
    from groundup.tokenizer import Tokenizer

    texts, size = [], 0
    for document in read_documents(bundled.path()):
        texts.append(document.text)
        size += len(document.text)
        if size >= EXAMPLE_CHARACTERS:
            break
    return Tokenizer.train_from_iterator(texts, EXAMPLE_VOCAB_SIZE)


def _convert_options(parser: Parser) -> None:
    add = parser.add_argument
    add("source", help="folder, tokenizer.json, a tiktoken rank file, or vocabulary and merges of GPT-2")
    add("destination", metavar="DEST", help="what to write")
    add("--to", required=True, choices=("hugging-face", "tiktoken", "gpt2"), help="the form to write")
    add("--pattern", help="how the source cuts text, where its files do not say: gpt2, gpt4, o200k, none "
        "or a regular expression (default: what the files say)")  # fmt: skip
    add("--special-tokens", nargs="+", metavar="TOKEN",
        help="the source's special tokens, each as TOKEN or TOKEN=ID (default: what the files say)")  # fmt: skip
    add("--json", action="store_true", help="end with one JSON line")


def _convert(options: Arguments) -> int:
    from groundup.tokenizer import formats

    specials = _special_tokens(options.special_tokens) if options.special_tokens else None
    parts = formats.load(Path(options.source), pattern=options.pattern, special_tokens=specials)
    formats.export(parts, Path(options.destination), options.to)
    size = plural(len(parts.vocab), "token")
    print(f"{options.destination}: {size}, pattern {parts.pattern}, as {options.to} writes it")
    if options.json:
        print_json({"destination": options.destination, "to": options.to, "tokens": len(parts.vocab),
                    "special_tokens": parts.special_tokens, "pattern": parts.pattern})  # fmt: skip
    return 0


def _special_tokens(words: list[str]) -> list[str] | dict[str, int]:
    """Tokens with their ids when every one has its own, else tokens alone."""
    pairs = [word.rpartition("=") for word in words]
    if all(token and token_id.isdecimal() for token, _, token_id in pairs):
        return {token: int(token_id) for token, _, token_id in pairs}
    return words


# shards ----------------------------------------------------------------------------------------------------------


def _shards_options(parser: Parser) -> None:
    add = parser.add_argument
    add("files", nargs="+", help=".txt .md .jsonl .parquet or folders")
    add("--tokenizer", required=True, metavar="T", help="folder or tokenizer.json")
    add("--out", required=True, help="folder to write")
    add("--text-field", metavar="NAME",
        help="field of .jsonl and .parquet records that holds the text (default: text, else content)")  # fmt: skip
    add("--shard-tokens", type=whole_number, default=2**30, metavar="N",
        help="most ids in one file (default: %(default)s)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace the shards that are there")
    add("--workers", type=whole_number, metavar="N", help="threads that encode (default: one for each core)")
    add("--explain", action="store_true", help="also say what the length of the sequences costs in attention")
    measure.add_shape(parser)
    add("--json", action="store_true", help="end with one JSON line")


def _shards(options: Arguments) -> int:
    from groundup.corpus import read_documents
    from groundup.data import write_shards
    from groundup.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(options.tokenizer)
    documents = read_documents(options.files, text_field=options.text_field)
    began = time.perf_counter()
    with progress_line() as show:
        shards = write_shards(documents, tokenizer, options.out, shard_tokens=options.shard_tokens,
                              overwrite=options.overwrite, resume=True, workers=options.workers,
                              progress=lambda done: show("bytes encoded:", done, 0))  # fmt: skip
    rate = shards.text_bytes / max(time.perf_counter() - began, 1e-9) / 1e6
    ratio = shards.text_bytes / shards.num_tokens
    result: dict[str, Any] = {
        "out": options.out, "tokens": shards.num_tokens, "documents": shards.num_documents,
        "bytes": shards.text_bytes, "files": len(shards.files), "dtype": shards.manifest["dtype"],
        "bytes_per_token": ratio, "megabytes_per_second": rate,
    }  # fmt: skip
    print(f"{options.out}: {plural(shards.num_tokens, 'token')} of {plural(shards.num_documents, 'document')} in "
          f"{plural(len(shards.files), 'file')} of {result['dtype']}, {ratio:.2f} bytes per token, "
          f"{rate:.1f} MB/s")  # fmt: skip
    if options.explain:
        result["attention"] = measure.explain(options, ratio, tokenizer.vocab_size)
    if options.json:
        print_json(result)
    return 0


ACTIONS = {
    "train": Verb("learn a byte-level BPE vocabulary from text", _train_options, _train),
    "encode": Verb("text to ids", _encode_options, _encode),
    "decode": Verb("ids to text", _decode_options, _decode),
    "compare": Verb("bytes per token of characters, bytes, words, BPE and your own, per file and language",
                    measure.compare_options, measure.compare),
    "sweep": Verb("what the size of the vocabulary trades: ratio, parameters, FLOPs per byte",
                  measure.sweep_options, measure.sweep),
    "audit": Verb("look for tokens that no text reaches or has, digit cuts, and what languages pay",
                  audit_options, audit),
    "explore": Verb("write a page that shows how text is cut and merged", _explore_options, _explore),
    "convert": Verb("between the files of Hugging Face, tiktoken and GPT-2", _convert_options, _convert),
    "shards": Verb("encode text into files of ids for training; goes on where it was stopped",
                   _shards_options, _shards),
}  # fmt: skip
