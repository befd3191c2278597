"""The tokenizer in a GGUF file (llama.cpp's models), from the metadata in front of the tensors, which stay unread.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

from groundup.config import nearest
from groundup.tokenizer.parts import Parts
from groundup.tokenizer.pretokenize import canonical
from groundup.tokenizer.spelling import read_ids, read_merges, read_tokens

MAGIC = b"GGUF"
MAX_METADATA_BYTES, MAX_ENTRIES, MAX_ITEMS = 1 << 25, 1 << 12, 1 << 21

# llama.cpp's names for pre-tokenizers, where they are one of ours.
PATTERN_OF_PRE = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), "llama3"),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), "qwen2"),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), "smollm"),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo"), "gpt2"),
    "gpt-4o": "o200k",
}
_SCALARS: dict[int, str] = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
_PREFIX = "tokenizer.ggml."
_LENGTH = struct.Struct("<Q")


def load(path: Path, pattern: str | None = None) -> Parts:
    """The tokenizer of a GGUF file. `pattern` goes before the one that the file names.

    Control and user-defined tokens are special. The file names no normalizer, and llama.cpp applies none, though
    some models (Qwen's) were trained on NFC. ValueError for damage, for models other than byte-level BPE, and for
    the name of a pattern that is unknown here.
    """
    with open(path, "rb") as file:
        if not file.read(1):
            raise ValueError("the file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _parts(_Metadata(view).read(_PREFIX), pattern)


def _parts(values: dict[str, Any], pattern: str | None) -> Parts:
    if values.get("model") != "gpt2":
        raise ValueError(f"{_PREFIX}model: {values.get('model')!r} is not supported; expected 'gpt2', byte-level BPE")
    found = _known_pattern(values.get("pre", "default"), pattern)
    texts, merges = _strings(values, "tokens"), _strings(values, "merges")
    kinds = values.get("token_type", [1] * len(texts))
    if not isinstance(kinds, (list, tuple)) or len(kinds) != len(texts):
        raise ValueError(f"{_PREFIX}token_type: not one number for each of {len(texts)} tokens")
    ids = {text: i for i, text in enumerate(texts) if kinds[i] != _UNUSED}
    if len(ids) < sum(kind != _UNUSED for kind in kinds):
        twice = next(text for i, text in enumerate(texts) if kinds[i] != _UNUSED and ids[text] != i)
        raise ValueError(f"{_PREFIX}tokens: {twice[:40]!r} is there twice")
    specials = {text: i for text, i in ids.items() if kinds[i] in (_CONTROL, _USER_DEFINED)}
    tokens = read_tokens(ids, specials, f"{_PREFIX}tokens")
    vocab = read_ids(ids, tokens, specials, f"{_PREFIX}tokens")
    listed = read_merges(merges, tokens, f"{_PREFIX}merges")
    return Parts(vocab, listed, specials, canonical(pattern or found), ignore_merges=found == "llama3")


def _known_pattern(pre: Any, given: str | None) -> str | None:
    found = PATTERN_OF_PRE.get(str(pre))
    if found is None and given is None:
        known = f"{', '.join(PATTERN_OF_PRE)}{nearest(str(pre), PATTERN_OF_PRE)}; or pass pattern="
        raise ValueError(f"{_PREFIX}pre: {str(pre)[:80]!r} is not supported; expected one of {known}")
    return found


def _strings(values: dict[str, Any], key: str) -> list[str]:
    found = values.get(key)
    if not isinstance(found, list):
        raise ValueError(f"{_PREFIX}{key}: expected a list of strings")
    return found


class _Metadata:
    """A reader of the keys and values in front. Every size is checked before anything of that size is read."""

    def __init__(self, view: mmap.mmap) -> None:
        self._view, self._at = view, 0
        self._end = min(len(view), MAX_METADATA_BYTES)

    def read(self, prefix: str) -> dict[str, Any]:
        """The values of the keys that start with `prefix`, by the rest of the key; the others are skipped."""
        if self._view[:4] != MAGIC:
            raise ValueError("not a GGUF file")
        self._at = 4
        version, _, entries = self._number(4), self._number(10), self._number(10)
        if version not in (2, 3):
            raise ValueError(f"GGUF version {version}; expected 2 or 3, little-endian")
        if entries > MAX_ENTRIES:
            raise ValueError(f"{entries} entries of metadata; at most {MAX_ENTRIES}")
        values: dict[str, Any] = {}
        for _ in range(entries):
            key = self._string("a key")
            value = self._value(self._number(4), key, wanted=key.startswith(prefix))
            if key in values:
                raise ValueError(f"the key {key[:80]!r} occurs twice")
            values[key] = value
        return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}

    def _take(self, size: int) -> int:
        """Where the next `size` bytes start, which are then behind us."""
        start = self._at
        if size > self._end - start:
            raise ValueError(f"byte {start}: {size} bytes are announced, {self._end - start} are left of the metadata")
        self._at += size
        return start

    def _numbers(self, kind: int, count: int) -> tuple[Any, ...]:
        layout = struct.Struct(f"<{count}{_SCALARS[kind]}")
        return layout.unpack_from(self._view, self._take(layout.size))

    def _number(self, kind: int) -> Any:
        return self._numbers(kind, 1)[0]

    def _string(self, where: str) -> str:
        size = self._number(10)
        start = self._take(size)
        try:
            return self._view[start : start + size].decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"byte {start}, {where[:80]!r}: not UTF-8 ({error.reason})") from None

    def _value(self, kind: int, key: str, wanted: bool) -> Any:
        if kind in _SCALARS:
            return self._number(kind)
        if kind == _STRING:
            return self._string(key)
        if kind != _ARRAY:
            raise ValueError(f"{key[:80]!r}: no kind of value has the number {kind}")
        item, count = self._number(4), self._number(10)
        if count > MAX_ITEMS:
            raise ValueError(f"{key[:80]!r}: {count} items; at most {MAX_ITEMS}")
        if item in _SCALARS:
            return self._numbers(item, count)
        if item == _STRING:
            return self._strings(key, count, wanted)
        raise ValueError(f"{key[:80]!r}: a list of kind {item} is not supported")

    def _strings(self, key: str, count: int, wanted: bool) -> list[str]:
        # As `_string` does it, without a call for each: these lists are most of the metadata.
        view, at, end = self._view, self._at, self._end
        found: list[bytes] = []
        for _ in range(count):
            start = at + _LENGTH.size
            size = _LENGTH.unpack_from(view, at)[0] if start <= end else 0
            at = start + size
            if at > end:
                raise ValueError(f"byte {start}, {key[:80]!r}: {size} bytes are announced, more than are left")
            if wanted:
                found.append(view[start:at])
        self._at = at
        try:
            return [text.decode() for text in found]
        except UnicodeDecodeError as error:
            raise ValueError(f"{key[:80]!r}: {error.object[:40]!r} is not UTF-8") from None
