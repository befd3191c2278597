"""`groundup flops`: the shares of attention, feed-forward layers and head, over sizes and contexts."""

import re
from typing import TYPE_CHECKING

from groundup.cli_parts import Arguments, Parser, print_json

if TYPE_CHECKING:
    from groundup.model import ModelConfig
    from groundup.profiling import FlopShares

CONTEXT = "context_length"
DEFAULT_CONTEXT = 1024


def options(parser: Parser) -> None:
    """The options of the verb."""
    add = parser.add_argument
    add("files", nargs="*", metavar="MODEL|key=value", help="published models, one row each (default: a small Llama), "
        "and settings: context_length=4k (default: 1k), d_model=512, or dotted, as blocks.0.ffn.d_ff=512")  # fmt: skip
    add("--sweep", metavar="KEY=VALUES", help="a row for each value, as context_length=1k,..,16k (each twice the one "
        "before; k is 1024) or d_model=256,512,1024")  # fmt: skip
    add("--square", action="store_true", help="count all queries times all keys (default: those that the mask shows)")
    add("--html", metavar="FILE", help="also write a page with a chart")
    add("--json", action="store_true", help="end with one JSON line of the rows")


def run(options: Arguments) -> int:
    """Count, print, draw; returns the exit code."""
    from groundup.report.shares import share_table, write_shares
    from groundup.report.tables import to_text

    points, swept = _points(options)
    print(to_text(share_table(points, swept)))
    if options.html:
        print(f"wrote {write_shares(options.html, points, swept)}")
    if options.json:
        print_json([
            {"label": p.label, "context_length": p.context_length, "parameters": p.parameters, "total": p.total,
             "flops": p.flops, "share": {part: p.share(part) for part in p.flops}}
            for p in points
        ])  # fmt: skip
    return 0


def _points(options: Arguments) -> tuple[list["FlopShares"], str]:
    """The rows, and what changes from one to the next."""
    from groundup.profiling import flop_shares

    words = [word for word in options.files if "=" in word]
    names = [word for word in options.files if "=" not in word] or [None]
    key, values = parse_sweep(options.sweep) if options.sweep else (CONTEXT, [])
    points = []
    for name in names:
        for value in values or [None]:
            config, context = _model(name, [*words, *([f"{key}={value}"] if value else [])])
            label = ", ".join(filter(None, [name, f"{value:,}" if value else None])) or "llama"
            points.append(flop_shares(config, context, causal=not options.square, label=label))
    return points, key if options.sweep else "model"


def _model(name: str | None, changes: list[str]) -> tuple["ModelConfig", int]:
    """The config and the tokens of a row, which for a count need not be those that the model was made for."""
    from groundup import presets
    from groundup.config import override
    from groundup.profiling.subject import from_settings

    contexts = [size_of(word.partition("=")[2]) for word in changes if word.startswith(f"{CONTEXT}=")]
    changes = [_plain(word) for word in changes if not word.startswith(f"{CONTEXT}=")]
    config = override(presets.published(name), *changes) if name else from_settings(changes)
    return config, contexts[-1] if contexts else DEFAULT_CONTEXT


def _plain(word: str) -> str:
    """d_model=1k as d_model=1024."""
    key, _, value = word.partition("=")
    return f"{key}={size_of(value)}" if re.fullmatch(r"\d+[kK]", value) else word


def parse_sweep(text: str) -> tuple[str, list[int]]:
    """The key and its values; `..` doubles from the value before it up to the one after it.

    >>> parse_sweep("context_length=1k,..,8k")
    ('context_length', [1024, 2048, 4096, 8192])

    ValueError for what is no such list.
    """
    key, equals, listed = text.partition("=")
    words = listed.split(",")
    if not (key and equals and listed) or words[0] == ".." or words[-1] == "..":
        raise ValueError(f"--sweep {text!r}: expected key=value,value,... such as context_length=1k,..,16k")
    values: list[int] = []
    for place, word in enumerate(words):
        if word != "..":
            values.append(size_of(word))
            continue
        last = size_of(words[place + 1])
        while 2 * values[-1] < last:
            values.append(2 * values[-1])
    return key, values


def size_of(text: str) -> int:
    """A number of tokens or channels; k is 1024, as in the names of context lengths.

    >>> size_of("16k"), size_of("768")
    (16384, 768)
    """
    match = re.fullmatch(r"(\d+)([kK]?)", text.strip())
    if not match or int(match[1]) < 1:
        raise ValueError(f"{text!r} is no size, such as 768 or 16k")
    return int(match[1]) * (1024 if match[2] else 1)
