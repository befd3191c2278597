"""The tokenizer in a GGUF file (llama.cpp's models), from the metadata in front of the tensors, which stay unread.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

import logging
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from groundup.config import nearest
from groundup.gguf.metadata import MAGIC, MAX_ITEMS, read_header
from groundup.tokenizer.parts import Parts
from groundup.tokenizer.pretokenize import canonical
from groundup.tokenizer.spelling import read_ids, read_merges, read_tokens, spell

__all__ = ["MAGIC", "MAX_ITEMS", "PATTERN_OF_PRE", "load", "to_metadata"]

logger = logging.getLogger(__name__)

# llama.cpp's names for pre-tokenizers, where they are one of ours.
PATTERN_OF_PRE = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), "llama3"),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), "qwen2"),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), "smollm"),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo"), "gpt2"),
    "gpt-4o": "o200k",
}
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
_PREFIX = "tokenizer.ggml."
TEMPLATE_KEY = "tokenizer.chat_template"


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
            values = read_header(view, lambda key: key.startswith(_PREFIX)).values
    return _parts({key.removeprefix(_PREFIX): values[key] for key in values if key.startswith(_PREFIX)}, pattern)


def _parts(values: dict[str, Any], pattern: str | None) -> Parts:
    if values.get("model") != "gpt2":
        raise ValueError(f"{_PREFIX}model: {values.get('model')!r} is not supported; expected 'gpt2', byte-level BPE")
    found = _known_pattern(values.get("pre", "default"), pattern)
    texts, merges = _strings(values, "tokens"), _strings(values, "merges")
    kinds = _token_types(values.get("token_type"), len(texts))
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


def _token_types(found: Any, count: int) -> list[int]:
    if found is None:
        return [1] * count
    if not isinstance(found, np.ndarray) or len(found) != count:
        raise ValueError(f"{_PREFIX}token_type: not one number for each of {count} tokens")
    return found.tolist()


def _strings(values: dict[str, Any], key: str) -> list[str]:
    found = values.get(key)
    if not isinstance(found, list):
        raise ValueError(f"{_PREFIX}{key}: expected a list of strings")
    return found


# writing ---------------------------------------------------------------------------------------------------------

# How llama.cpp is told the patterns that it knows.
PRE_OF_PATTERN = {"gpt2": "gpt-2", "llama3": "llama-bpe", "qwen2": "qwen2", "smollm": "smollm", "o200k": "gpt-4o"}
_NORMAL = 1


def to_metadata(
    parts: Parts,
    vocab_size: int,
    *,
    start: int | None = None,
    end: int | None = None,
    end_of_turn: int | None = None,
    template: str | None = None,
) -> dict[str, Any]:
    """The metadata by which llama.cpp gives the ids that we give, for a model with `vocab_size` rows.

    `start`, `end` and `end_of_turn` are ids of tokens; `template` is a chat template (Jinja). Rows without a token are
    called [PAD...] and marked as unused. A normalizer is left out, with a warning: llama.cpp has none.
    ValueError for a pattern that llama.cpp has no name for, for merges that do not reach every token, and for more
    tokens than rows.
    """
    if max(parts.vocab, default=-1) >= vocab_size:
        raise ValueError(f"the tokenizer has the id {max(parts.vocab)}, the model {vocab_size} rows: they do not fit")
    pattern = parts.pattern
    if pattern not in PRE_OF_PATTERN:
        known = f"expected one of {', '.join(PRE_OF_PATTERN)}{nearest(pattern, PRE_OF_PATTERN)}"
        raise ValueError(f"pattern {pattern[:80]!r}: llama.cpp has no such pre-tokenizer; {known}")
    if (parts.ignore_merges or parts.merges is None) != (pattern == "llama3") and (lost := parts.unreached()):
        raise ValueError(f"token {lost!r}: merges do not reach it, and llama.cpp takes whole words with llama3 alone")
    if parts.normalizer is not None:
        logger.warning("llama.cpp applies no normalizer: text that is not in %s gets other ids", parts.normalizer)
    special = {token_id: token for token, token_id in parts.special_tokens.items()}
    ids = range(vocab_size)
    texts = [special.get(i) or (spell(parts.vocab[i]) if i in parts.vocab else f"[PAD{i}]") for i in ids]
    kinds = [_CONTROL if i in special else _NORMAL if i in parts.vocab else _UNUSED for i in ids]
    values: dict[str, Any] = {
        "model": "gpt2",
        "pre": PRE_OF_PATTERN[pattern],
        "tokens": texts,
        "token_type": np.array(kinds, np.int32),
        "merges": [f"{spell(left)} {spell(right)}" for left, right in parts.listed_merges()],
        "add_bos_token": False,
        "add_space_prefix": False,
        "bos_token_id": start,
        "eos_token_id": end,
        "eot_token_id": end_of_turn,
    }
    written = {_PREFIX + key: value for key, value in values.items() if value is not None}
    return written | ({TEMPLATE_KEY: template} if template else {})
