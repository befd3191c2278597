"""Reading a tokenizer from whatever file holds it, and writing it for other programs.

    kind          | files                                  | what they do not hold
    hugging-face  | tokenizer.json, tokenizer_config.json  |
    tiktoken      | name.tiktoken (any name)               | pattern, special tokens; known for published ones
    gpt2          | vocab.json and merges.txt              | pattern (GPT-2's), which tokens are special
    gguf          | name.gguf (read only)                  | normalizer

Files are the user's: nothing is ever downloaded. See `hugging_face`, `tiktoken_ranks`, `gpt2_files` and `gguf`.
"""

from pathlib import Path

from groundup.config import nearest
from groundup.files import write_atomic
from groundup.tokenizer import gguf, gpt2_files, hugging_face, tiktoken_ranks
from groundup.tokenizer.hugging_face import from_json, save, to_json
from groundup.tokenizer.parts import MAX_FILE_BYTES, Parts, SpecialTokens, read_bounded

__all__ = ["KINDS", "MAX_FILE_BYTES", "Parts", "export", "from_json", "load", "save", "to_json"]

KINDS = ("hugging-face", "tiktoken", "gpt2")


def load(path: str | Path, pattern: str | None = None, special_tokens: SpecialTokens | None = None) -> Parts:
    """Read a tokenizer from a file, or from a folder that holds one; its kind is recognised.

    `pattern` and `special_tokens` are for files that do not hold them, and otherwise refused. ValueError says
    what is wrong and where; FileNotFoundError says what was looked for.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, pattern, special_tokens)
    if path.name in sum(gpt2_files.NAMES, ()) and gpt2_files.find(path.parent):
        return _load_folder(path.parent, pattern, special_tokens, json_first=False)
    try:
        return _load_file(path, pattern, special_tokens)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def sources(path: Path) -> list[Path]:
    """The files that `load` reads. FileNotFoundError where there are none."""
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return [path / "tokenizer.json"]
        pair = gpt2_files.find(path)
        if pair is None:
            raise _nothing_there(path)
        return list(pair)
    pair = gpt2_files.find(path.parent) if path.name in sum(gpt2_files.NAMES, ()) else None
    return list(pair) if pair else [path]


def export(parts: Parts, path: str | Path, kind: str) -> None:
    """Write a tokenizer as one of `KINDS`. ValueError where that kind of file cannot say what it does.

    `path` is a folder, or a `.json` file ("hugging-face"), a file ("tiktoken"), a folder ("gpt2").
    """
    path = Path(path)
    match kind:
        case "hugging-face":
            hugging_face.save(parts, path)
        case "tiktoken":
            write_atomic(path, tiktoken_ranks.to_ranks(parts))
        case "gpt2":
            gpt2_files.save(parts, path)
        case _:
            raise ValueError(f"kind {kind!r}: expected one of {', '.join(KINDS)}{nearest(kind, KINDS)}")


def _load_folder(
    folder: Path, pattern: str | None, special_tokens: SpecialTokens | None, json_first: bool = True
) -> Parts:
    if json_first and (folder / "tokenizer.json").is_file():
        return load(folder / "tokenizer.json", pattern, special_tokens)
    pair = gpt2_files.find(folder)
    if pair is None:
        raise _nothing_there(folder)
    try:
        return gpt2_files.load(*pair, pattern, special_tokens)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _nothing_there(folder: Path) -> FileNotFoundError:
    tried = ", ".join(["tokenizer.json", *(" with ".join(names) for names in gpt2_files.NAMES)])
    return FileNotFoundError(f"{folder}: a folder without {tried}; name a .tiktoken or .gguf file itself")


def _load_file(path: Path, pattern: str | None, special_tokens: SpecialTokens | None) -> Parts:
    with open(path, "rb") as file:
        start = file.read(4096)
    if path.suffix == ".gguf" or start.startswith(gguf.MAGIC):
        if special_tokens is not None:
            raise ValueError("a GGUF file lists its special tokens itself; leave special_tokens out")
        return gguf.load(path, pattern)
    if path.suffix == ".json" or start.lstrip().startswith(b"{"):
        if pattern is not None or special_tokens is not None:
            raise ValueError("tokenizer.json says its pattern and special tokens itself; leave both out")
        return from_json(read_bounded(path))
    if path.suffix == ".tiktoken" or tiktoken_ranks.looks_like_ranks(start):
        return tiktoken_ranks.from_ranks(read_bounded(path), pattern, special_tokens)
    raise ValueError(
        "neither a tokenizer.json (starts with {), nor tiktoken's ranks (lines of base64 and a number), nor GGUF"
    )
