"""`groundup import` and `groundup export`: models from other programs, and for them. Each ends with a comparison."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.cli_parts import Arguments, Parser, print_json
from groundup.config import plural

if TYPE_CHECKING:
    from groundup.model.source import Source

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
EXACT = 1e-4  # float32 weights come back as they were; what is left is the order of sums


def import_options(parser: Parser) -> None:
    """The options of `groundup import`."""
    add = parser.add_argument
    add("source", help="a folder in Hugging Face's layout, a .gguf file, or llama2.c's .bin")
    add("--out", required=True, metavar="DIR", help="the model folder to write")
    _add_shared(parser, ("f32", "f16", "bf16"), "f32")


def run_import(options: Arguments) -> int:
    """Write a model folder from a model of another program."""
    from groundup.model.source import refuse_existing, write_folder

    refuse_existing(options.out)
    source = _read(options)
    write_folder(source, options.out, options.dtype, _bytes(options.max_shard_size))
    return _report(options, source, Path(options.out))


def export_options(parser: Parser) -> None:
    """The options of `groundup export`."""
    add = parser.add_argument
    add("source", metavar="DIR", help="a finished run, or any model that `groundup import` reads")
    add("--to", required=True, choices=("hf", "gguf"), help="hf: a folder for transformers; gguf: a file for llama.cpp")
    add("--out", metavar="PATH", help="what to write (default for gguf: NAME-DTYPE.gguf in this folder)")
    _add_shared(parser, ("f32", "f16", "bf16", "q8_0"), None)


def run_export(options: Arguments) -> int:
    """Write a model for another program."""
    from groundup.model.source import refuse_existing, write_folder, write_gguf_model

    path = Path(options.source).resolve()
    name = path.name if path.is_dir() else path.stem
    options.dtype = options.dtype or {"hf": "f32", "gguf": "f16"}[options.to]
    if options.to == "hf" and not options.out:
        raise ValueError("--out: name the folder to write")
    out = refuse_existing(options.out or f"{name}-{options.dtype}.gguf")
    if options.to == "gguf" and options.max_shard_size:
        raise ValueError("--max-shard-size: a GGUF file is written in one piece; leave it out, or use --to hf")
    source = _read(options)
    _say_which(options)
    if options.to == "hf":
        write_folder(source, out, options.dtype, _bytes(options.max_shard_size))
    else:
        write_gguf_model(source, out, options.dtype, name)
    return _report(options, source, out)


def _say_which(options: Arguments) -> None:
    chat = Path(options.source) / "chat"
    if (chat / "config.json").is_file():
        print(f"this is the model that continues text; the one tuned to chat is exported with: groundup export {chat} "
              f"--to {options.to} --out PATH", file=sys.stderr)  # fmt: skip


def _add_shared(parser: Parser, dtypes: tuple[str, ...], default: str | None) -> None:
    add = parser.add_argument
    shown = default or "f32 for hf, f16 for gguf"
    add("--dtype", choices=dtypes, default=default, help=f"the numbers of the weights (default: {shown})")
    add("--max-shard-size", metavar="SIZE", help="cut the weights into files of at most this, e.g. 2GB (default: one)")
    add("--without-tokenizer", action="store_true", help="leave the tokenizer out, for one that cannot be read")
    add("--json", action="store_true", help="end with one JSON line")


def _read(options: Arguments) -> "Source":
    from groundup.model.source import read_source

    source = read_source(options.source, with_tokenizer=not options.without_tokenizer)
    config = source.model.config
    parameters = sum(p.numel() for p in source.model.parameters())
    tokenizer = f"a tokenizer of {plural(source.tokenizer.vocab_size, 'token')}" if source.tokenizer else "no tokenizer"
    chat = ", a chat template" if source.template else ""
    print(f"{options.source}: {plural(parameters, 'parameter')} in {plural(config.num_layers, 'layer')}, "
          f"{tokenizer}{chat}")  # fmt: skip
    return source


def _report(options: Arguments, source: "Source", out: Path) -> int:
    """Read back what was written, and say how far it is from the source."""
    from groundup.model.source import compare, read_source

    written = read_source(out, with_tokenizer=source.tokenizer is not None)
    difference = compare(source, written)
    agree = "agree" if difference.greedy_agrees else "DIFFER"
    print(f"{out}: read back; on {plural(difference.tokens, 'token')} logits off by {difference.logits:.3g} at most "
          f"(largest logit {difference.largest_logit:.3g}), greedy tokens {agree}")  # fmt: skip
    if options.json:
        print_json({"source": options.source, "out": str(out), "dtype": options.dtype, "bytes": _size(out),
                    **difference._asdict()})  # fmt: skip
    if options.dtype == "f32" and not difference.logits <= EXACT * max(difference.largest_logit, 1):
        raise ValueError(f"{out}: what was written is not the model that was read")
    return 0


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))


def _bytes(text: Any) -> int | None:
    """2GB as a number of bytes."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B|)", text.upper())
    if not match or float(match[1]) * UNITS[match[2]] < 1:
        raise ValueError(f"--max-shard-size {text!r}: expected a size such as 500MB or 2GB")
    return int(float(match[1]) * UNITS[match[2]])
