"""`tokenizer.json` and `tokenizer_config.json`, as Hugging Face's libraries read and write them."""

import json
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup.files import write_atomic, write_json
from groundup.tokenizer.bpe import splits
from groundup.tokenizer.chat import CONTROL_TOKENS, END_OF_TEXT, chat_template
from groundup.tokenizer.pretokenize import NO_PATTERN, PATTERN_NAMES, PORTABLE_PATTERNS, is_name

MAX_FILE_BYTES = 1 << 26


@dataclass(frozen=True)
class Parts:
    """What defines a tokenizer: `vocab` includes the special tokens.

    `merges` is None for a vocabulary of ranks (tiktoken's), in which every split of a token into two tokens is a
    merge, ranked by the token's id. `ignore_merges`: a pre-token that is a token is not cut up.
    """

    vocab: dict[int, bytes]
    merges: list[tuple[bytes, bytes]] | None
    special_tokens: dict[str, int]
    pattern: str
    ignore_merges: bool = False

    def listed_merges(self) -> list[tuple[bytes, bytes]]:
        """The merges, written out where they follow from the ranks."""
        return splits(self.vocab) if self.merges is None else self.merges


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in GPT-2's files: itself, or one from U+0100 on.

    >>> byte_alphabet()[ord("A")], byte_alphabet()[ord(" ")]
    ('A', 'Ġ')
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_TO_ALPHABET = dict(enumerate(byte_alphabet()))
_FROM_ALPHABET = {character: byte for byte, character in _TO_ALPHABET.items()}


def save(parts: Parts, path: Path) -> None:
    """Write `tokenizer.json` (to a `.json` path), or that and `tokenizer_config.json` into a directory."""
    if path.suffix == ".json":
        write_atomic(path, to_json(parts))
        return
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: a file; expected a directory or a path that ends in .json")
    path.mkdir(parents=True, exist_ok=True)
    write_atomic(path / "tokenizer.json", to_json(parts))
    write_json(path / "tokenizer_config.json", _config(parts))


def load(path: Path) -> Parts:
    """Read a `tokenizer.json`, or that of a directory. ValueError says what is wrong, and where in the
    file."""
    path = path / "tokenizer.json" if path.is_dir() else path
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{path}: {size} bytes; a tokenizer has at most {MAX_FILE_BYTES}")
    try:
        return from_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def to_json(parts: Parts) -> str:
    """The text of a `tokenizer.json`. ValueError when an ordinary token is spelled there like a special
    one."""
    by_id = {id: token for token, id in parts.special_tokens.items()}
    vocab = {_spell(token): id for id, token in sorted(parts.vocab.items()) if id not in by_id}
    clash = [token for token in parts.special_tokens if token in vocab]
    if clash:
        raise ValueError(f"special token {clash[0]!r}: tokenizer.json spells an ordinary token like this")
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": parts.ignore_merges,
        "vocab": vocab | {token: id for id, token in sorted(by_id.items())},
        "merges": [[_spell(left), _spell(right)] for left, right in parts.listed_merges()],
    }
    contents = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(id, token) for id, token in sorted(by_id.items())],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(parts.pattern),
        "post_processor": None,
        "decoder": _byte_level(),
        "model": model,
    }
    return json.dumps(contents, ensure_ascii=False, indent=1) + "\n"


def from_json(data: bytes | str) -> Parts:
    """Parse a `tokenizer.json`. ValueError for what is malformed, and for what no byte-level BPE has."""
    contents = _parse(data)
    for key in ("normalizer", "truncation", "padding"):
        if contents.get(key) is not None:
            raise ValueError(f"{key}: {_kind(contents[key])} is not supported; expected null")
    _check_post_processor(contents.get("post_processor"))
    pattern = _read_pattern(contents.get("pre_tokenizer"))
    specials = dict(_read_added(contents.get("added_tokens") or []))
    model = _expect(contents.get("model"), dict, "model")
    _check_model(model)
    vocab = _read_vocab(model, specials)
    return Parts(vocab, list(_read_merges(model)), specials, pattern, bool(model.get("ignore_merges")))


def _spell(token: bytes) -> str:
    return token.decode("latin-1").translate(_TO_ALPHABET)


def _unspell(text: str, where: str) -> bytes:
    try:
        return bytes([_FROM_ALPHABET[character] for character in text])
    except KeyError as error:
        raise ValueError(f"{where}: {text[:40]!r} has {error.args[0]!r}, which stands for no byte") from None


def _added(token_id: int, token: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": token, **flags}


def _byte_level() -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def _pre_tokenizer(pattern: str) -> dict[str, Any]:
    if pattern == NO_PATTERN:
        return _byte_level()
    text = {"Regex": PORTABLE_PATTERNS.get(pattern, pattern)}
    split = {"type": "Split", "pattern": text, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _byte_level()]}


def _config(parts: Parts) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,  # transformers' way to say that there is none
    }
    if END_OF_TEXT in parts.special_tokens:
        config |= {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    if all(token in parts.special_tokens for token in CONTROL_TOKENS):
        config["chat_template"] = chat_template(parts.special_tokens)
    return config


def _parse(data: bytes | str) -> dict[str, Any]:
    try:
        contents = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply for a tokenizer") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors too
        raise ValueError(f"not valid JSON ({error}); restore the file, or train the tokenizer again") from error
    return _expect(contents, dict, "the file")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:40]!r} occurs twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _expect(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where}: expected {kind.__name__}, found {reprlib.repr(value)}")
    return value


def _kind(value: Any) -> str:
    return reprlib.repr(value.get("type") if isinstance(value, dict) else value)


def _check_model(model: dict[str, Any]) -> None:
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"model.type: {_kind(model)} is not supported; expected 'BPE'")
    for key in (
        "dropout",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "byte_fallback",
    ):
        if model.get(key):
            raise ValueError(f"model.{key}: {reprlib.repr(model[key])} is not supported; expected none")


def _check_post_processor(value: Any) -> None:
    # ByteLevel adjusts offsets only; the others add tokens to every text.
    if value is not None and _expect(value, dict, "post_processor").get("type") != "ByteLevel":
        raise ValueError(f"post_processor: {_kind(value)} is not supported; expected null or 'ByteLevel'")


def _read_pattern(value: Any) -> str:
    """The pattern that a pre-tokenizer amounts to: ByteLevel alone, or after one Split."""
    steps = [_expect(value, dict, "pre_tokenizer")]
    if value.get("type") == "Sequence":
        steps = _expect(value.get("pretokenizers"), list, "pre_tokenizer.pretokenizers")
    kinds = [_expect(step, dict, "pre_tokenizer").get("type") for step in steps]
    if kinds not in (["ByteLevel"], ["Split", "ByteLevel"]):
        found = reprlib.repr(kinds)
        raise ValueError(f"pre_tokenizer: {found} is not supported; expected ByteLevel, or Split and ByteLevel")
    if steps[-1].get("add_prefix_space", True):
        raise ValueError("pre_tokenizer.add_prefix_space: true is not supported; it changes the text")
    if steps[-1].get("use_regex", True):
        if len(steps) > 1:
            raise ValueError("pre_tokenizer: ByteLevel with use_regex after a Split is not supported")
        return "gpt2"
    return _read_split(steps[0]) if len(steps) > 1 else NO_PATTERN


def _read_split(split: dict[str, Any]) -> str:
    pattern = _expect(split.get("pattern"), dict, "pre_tokenizer.pattern")
    text = _expect(pattern.get("Regex"), str, "pre_tokenizer.pattern.Regex")
    behavior = split.get("behavior"), split.get("invert", False)
    # Removing what does not match is the same when everything matches, as it does by the published patterns.
    if behavior != ("Isolated", False) and not (behavior == ("Removed", True) and text in PATTERN_NAMES):
        raise ValueError(f"pre_tokenizer Split: {reprlib.repr(behavior)} is not supported; expected 'Isolated'")
    if is_name(text):
        raise ValueError(f"pre_tokenizer.pattern: {text!r} is a word, not a pattern that splits text")
    return text  # the constructor finds the name of a published one


def _read_added(added: Any) -> Iterator[tuple[str, int]]:
    """Every added token, flagged special or not: text must not be able to forge a structural one either."""
    seen: set[str] = set()
    for number, entry in enumerate(_expect(added, list, "added_tokens")):
        where = f"added_tokens[{number}]"
        content = _expect(_expect(entry, dict, where).get("content"), str, f"{where}.content")
        for flag in ("single_word", "lstrip", "rstrip"):
            if entry.get(flag):
                raise ValueError(f"{where}.{flag}: true is not supported; it matches more than the token")
        if content in seen:
            raise ValueError(f"{where}: {content[:40]!r} is there twice")
        seen.add(content)
        yield content, _expect(entry.get("id"), int, f"{where}.id")


def _read_vocab(model: dict[str, Any], specials: dict[str, int]) -> dict[int, bytes]:
    vocab: dict[int, bytes] = {}
    for text, token_id in _expect(model.get("vocab"), dict, "model.vocab").items():
        where = f"model.vocab[{text[:40]!r}]"
        if _expect(token_id, int, where) in vocab:
            raise ValueError(f"{where}: the id {token_id} is that of {vocab[token_id]!r} too")
        if text in specials and specials[text] != token_id:
            raise ValueError(f"{where}: id {token_id}, but {specials[text]} in added_tokens")
        vocab[token_id] = text.encode() if text in specials else _unspell(text, where)
    return vocab


def _read_merges(model: dict[str, Any]) -> Iterator[tuple[bytes, bytes]]:
    """Merges as pairs, or as "left right" strings in files of older versions."""
    for number, merge in enumerate(_expect(model.get("merges"), list, "model.merges")):
        where = f"model.merges[{number}]"
        halves = merge.split(" ") if isinstance(merge, str) else _expect(merge, list, where)
        if len(halves) != 2 or not all(isinstance(half, str) and half for half in halves):
            raise ValueError(f"{where}: {reprlib.repr(merge)} is not a pair of tokens")
        yield _unspell(halves[0], where), _unspell(halves[1], where)
