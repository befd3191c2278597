"""`tokenizer.json` and `tokenizer_config.json`, as Hugging Face's libraries read and write them."""

import json
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from groundup.files import write_atomic, write_json
from groundup.tokenizer.chat import CONTROL_TOKENS, END_OF_TEXT, chat_template
from groundup.tokenizer.parts import Parts
from groundup.tokenizer.pretokenize import NO_PATTERN, PATTERN_NAMES, PORTABLE_PATTERNS, canonical, is_name
from groundup.tokenizer.spelling import read_ids, read_merges, read_tokens, spell

MAX_ITEMS = 1 << 21  # commas in a file: bounds the memory that parsing takes


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


def to_json(parts: Parts) -> str:
    """The text of a `tokenizer.json`, by which Hugging Face's libraries give the ids that we give.

    ValueError when an ordinary token is spelled there like a special one.
    """
    by_id = {id: token for token, id in parts.special_tokens.items()}
    spelled = {token: spell(token) for token in parts.vocab.values()}
    vocab = {spelled[token]: id for id, token in sorted(parts.vocab.items()) if id not in by_id}
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
        "ignore_merges": parts.ignore_merges or parts.merges is None,
        "vocab": vocab | {token: id for id, token in sorted(by_id.items())},
        "merges": [[spelled[left], spelled[right]] for left, right in parts.listed_merges()],
    }
    contents = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(id, token) for id, token in sorted(by_id.items())],
        "normalizer": {"type": parts.normalizer} if parts.normalizer else None,
        "pre_tokenizer": _pre_tokenizer(parts.pattern),
        "post_processor": None,
        "decoder": _byte_level(),
        "model": model,
    }
    return json.dumps(contents, ensure_ascii=False, indent=1) + "\n"


def from_json(data: bytes | str) -> Parts:
    """Parse a `tokenizer.json`. ValueError for what is malformed, and for what no byte-level BPE has.

    A post-processor is accepted and forgotten: `encode` adds no token that is not in the text, so the beginning
    of text that Llama 3's adds is the caller's to add.
    """
    contents = parse_object(data)
    for key in ("truncation", "padding"):
        if contents.get(key) is not None:
            raise ValueError(f"{key}: {_kind(contents[key])} is not supported; expected null")
    _check_post_processor(contents.get("post_processor"))
    normalizer = _read_normalizer(contents.get("normalizer"))
    pattern = _read_pattern(contents.get("pre_tokenizer"))
    specials = dict(_read_added(contents.get("added_tokens") or []))
    model = _expect(contents.get("model"), dict, "model")
    _check_model(model)
    ids = _expect(model.get("vocab"), dict, "model.vocab")
    tokens = read_tokens(ids, specials, "model.vocab")
    vocab = read_ids(ids, tokens, specials, "model.vocab")
    _check_unknown(model, vocab)
    merges = read_merges(_expect(model.get("merges"), list, "model.merges"), tokens, "model.merges")
    return Parts(vocab, merges, specials, pattern, bool(model.get("ignore_merges")), normalizer)


def _added(token_id: int, token: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": token, **flags}


_DIGITS = {"type": "Digits", "individual_digits": True}


def _byte_level() -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def _pre_tokenizer(pattern: str) -> dict[str, Any]:
    if pattern == NO_PATTERN:
        return _byte_level()
    if pattern == "smollm":  # as in SmolLM's own file, not as the one regex that amounts to it
        return {"type": "Sequence", "pretokenizers": [_DIGITS, _byte_level() | {"use_regex": True}]}
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


def parse_object(data: bytes | str) -> dict[str, Any]:
    """A JSON object without repeated keys, as a dict. ValueError for anything else."""
    commas = data.count(b",") if isinstance(data, bytes) else data.count(",")
    if commas > MAX_ITEMS:
        raise ValueError(f"more than {MAX_ITEMS} commas; no tokenizer lists as much")
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


def _check_unknown(model: dict[str, Any], vocab: dict[int, bytes]) -> None:
    if model.get("unk_token") is not None and len({token for token in vocab.values() if len(token) == 1}) < 256:
        unknown = reprlib.repr(model["unk_token"])
        raise ValueError(f"model.unk_token: {unknown} would stand for bytes without a token; that is not supported")


def _steps(value: Any, where: str, key: str) -> list[dict[str, Any]]:
    """One step or a Sequence of them, as a list; null is none."""
    if value is None:
        return []
    steps = [_expect(value, dict, where)]
    if value.get("type") == "Sequence":
        steps = _expect(value.get(key), list, f"{where}.{key}")
    return [_expect(step, dict, where) for step in steps]


def _check_post_processor(value: Any) -> None:
    for step in _steps(value, "post_processor", "processors"):
        if step.get("type") not in ("ByteLevel", "TemplateProcessing"):
            known = "expected null, 'ByteLevel', 'TemplateProcessing' or a 'Sequence' of them"
            raise ValueError(f"post_processor: {_kind(step)} is not supported; {known}")


def _read_normalizer(value: Any) -> str | None:
    steps = _steps(value, "normalizer", "normalizers")
    for step in steps:
        if step.get("type") != "NFC":
            raise ValueError(f"normalizer: {_kind(step)} is not supported; expected null or 'NFC'")
    return "NFC" if steps else None


def _read_pattern(value: Any) -> str:
    """The pattern that a pre-tokenizer amounts to: ByteLevel alone, after one Split, or after single Digits."""
    steps = _steps(_expect(value, dict, "pre_tokenizer"), "pre_tokenizer", "pretokenizers")
    kinds = [step.get("type") for step in steps]
    if kinds not in (["ByteLevel"], ["Split", "ByteLevel"], ["Digits", "ByteLevel"]):
        known = "expected ByteLevel, alone or after one Split or Digits"
        raise ValueError(f"pre_tokenizer: {reprlib.repr(kinds)} is not supported; {known}")
    if steps[-1].get("add_prefix_space", True):
        raise ValueError("pre_tokenizer.add_prefix_space: true is not supported; it changes the text")
    return _combined(steps[0] if len(steps) > 1 else None, bool(steps[-1].get("use_regex", True)))


def _combined(first: dict[str, Any] | None, use_regex: bool) -> str:
    """The pattern of a Split or Digits, or of none, followed by ByteLevel with or without GPT-2's pattern."""
    if first is None:
        return "gpt2" if use_regex else NO_PATTERN
    if first["type"] == "Digits":
        if not (use_regex and first.get("individual_digits", False)):
            raise ValueError("pre_tokenizer: Digits needs individual_digits, and use_regex in the ByteLevel after it")
        return "smollm"
    if use_regex:
        raise ValueError("pre_tokenizer: ByteLevel with use_regex after a Split is not supported")
    return _read_split(first)


def _read_split(split: dict[str, Any]) -> str:
    pattern = _expect(split.get("pattern"), dict, "pre_tokenizer.pattern")
    text = _expect(pattern.get("Regex"), str, "pre_tokenizer.pattern.Regex")
    behavior = split.get("behavior"), split.get("invert", False)
    # Removing what does not match is the same when everything matches, as it does by the published patterns.
    if behavior != ("Isolated", False) and not (behavior == ("Removed", True) and text in PATTERN_NAMES):
        raise ValueError(f"pre_tokenizer Split: {reprlib.repr(behavior)} is not supported; expected 'Isolated'")
    if is_name(text):
        raise ValueError(f"pre_tokenizer.pattern: {text!r} is a word, not a pattern that splits text")
    return canonical(text)


def _read_added(added: Any) -> Iterator[tuple[str, int]]:
    """Every added token, flagged special or not: text must not be able to forge a structural one either.

    One flagged `normalized` is looked for in the text as it came, too; after NFC it could be missing only where a
    combining character follows it.
    """
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
