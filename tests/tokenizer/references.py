r"""The tokenizers that ours must equal: tiktoken and Hugging Face's `tokenizers`, with published vocabularies.

The vocabularies are files that the repository does not hold. They lie in the folder that GROUNDUP_VOCABULARIES
names, else in `.vocabularies`: gpt2/vocab.json and merges.txt, r50k_base.tiktoken, p50k_base.tiktoken,
cl100k_base.tiktoken, o200k_base.tiktoken, llama3/tokenizer.json, qwen2.5/tokenizer.json, smollm2.gguf.

Each reference also tells to which class of Unicode it counts a character, because its tables are those of one version
of Unicode: a character that a later version assigns is a letter to one engine, and nothing to another.
"""

import base64
import functools
import hashlib
import importlib.metadata
import json
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from unittest import mock

REPOSITORY = Path(__file__).resolve().parents[2]
PATHS = {
    "tiktoken:gpt2": "gpt2",
    "tiktoken:r50k": "r50k_base.tiktoken",
    "tiktoken:p50k": "p50k_base.tiktoken",
    "tiktoken:cl100k": "cl100k_base.tiktoken",
    "tiktoken:o200k": "o200k_base.tiktoken",
    "huggingface:llama3": "llama3/tokenizer.json",
    "huggingface:qwen2.5": "qwen2.5/tokenizer.json",
    "huggingface:smollm2": "smollm2.gguf",
}
CLASSES = {
    "upper": r"[\p{Lu}\p{Lt}]",
    "lower": r"\p{Ll}",
    "caseless": r"[\p{Lm}\p{Lo}]",
    "mark": r"\p{M}",
    "number": r"\p{N}",
    "white": r"\s",
}
Ids = list[int]


class Reference(Protocol):
    """A tokenizer to compare with. `encode` returns None for a text that the reference does not survive."""

    name: str
    version: str
    normalize: Callable[[str], str] | None  # to NFC, where it does that before anything else

    def encode(self, text: str) -> Ids | None: ...
    def encode_batch(self, texts: Sequence[str]) -> list[Ids | None]: ...
    def pieces(self, text: str) -> list[str] | None: ...
    def class_of(self, character: str) -> str: ...


def vocabulary_path(name: str) -> Path:
    """Where the vocabulary of a reference lies. FileNotFoundError, with what to do, where it does not."""
    if name not in PATHS:
        raise ValueError(f"reference {name!r}: expected one of {', '.join(PATHS)}")
    folder = Path(os.environ.get("GROUNDUP_VOCABULARIES") or REPOSITORY / ".vocabularies")
    path = folder / PATHS[name]
    if not path.exists():
        raise FileNotFoundError(f"no vocabulary at {path}; set GROUNDUP_VOCABULARIES to the folder that holds it")
    return path


def load_reference(name: str) -> Reference:
    """The reference of this name (a key of PATHS), from local files only. FileNotFoundError, ImportError."""
    path = vocabulary_path(name)
    library, vocabulary = name.split(":")
    if library == "tiktoken":
        return TiktokenReference(name, path)
    made_from = _smollm2 if vocabulary == "smollm2" else _without_added_tokens
    return HuggingFaceReference(name, made_from(path))


class TiktokenReference:
    """`tiktoken.Encoding.encode_ordinary`, with the patterns that tiktoken itself publishes."""

    normalize: Callable[[str], str] | None = None

    def __init__(self, name: str, path: Path) -> None:
        import tiktoken

        pattern, ranks = _tiktoken_parts(name.split(":")[1], path)
        self.name, self.version = name, f"tiktoken {tiktoken.__version__}"
        self._encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def encode(self, text: str) -> Ids | None:
        """The ids, or None where tiktoken panics: what it raises then is a BaseException and no Exception."""
        try:
            return self._encoding.encode_ordinary(text)
        except BaseException as error:
            if type(error).__name__ != "PanicException" and not isinstance(error, ValueError):
                raise
            return None

    def encode_batch(self, texts: Sequence[str]) -> list[Ids | None]:
        return [self.encode(text) for text in texts]

    def pieces(self, text: str) -> list[str] | None:
        """tiktoken does not tell."""
        return None

    def class_of(self, character: str) -> str:
        """A key of CLASSES, or "other": found by encoding the character with a pattern that is only the class."""
        return _class_by(_tiktoken_matches, character)


class HuggingFaceReference:
    """`tokenizers.Tokenizer.encode` without special tokens."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        self.name, self.version = name, f"tokenizers {importlib.metadata.version('tokenizers')}"
        self._tokenizer = tokenizer
        self.normalize = tokenizer.normalizer.normalize_str if tokenizer.normalizer else None

    def encode(self, text: str) -> Ids | None:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[Ids | None]:
        return [found.ids for found in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def pieces(self, text: str) -> list[str] | None:
        """The pre-tokens, as they are before merges, of the normalised text."""
        text = self.normalize(text) if self.normalize else text
        return [text[slice(*span)] for _, span in self._tokenizer.pre_tokenizer.pre_tokenize_str(text)]

    def class_of(self, character: str) -> str:
        """A key of CLASSES, or "other"; a digit to `Digits`, which has tables of its own, is named besides."""
        found = _class_by(_oniguruma_matches, character)
        is_digit = self.name == "huggingface:smollm2" and found != "number" and _is_digit(character)
        return "number besides " + found if is_digit else found


def _class_by(matches: Callable[[str], Callable[[str], bool]], character: str) -> str:
    return next((name for name, pattern in CLASSES.items() if matches(pattern)(character)), "other")


@functools.cache
def _tiktoken_matches(pattern: str) -> Callable[[str], bool]:
    """Whether a character matches, to the engine of tiktoken, which leaves out what does not."""
    import tiktoken

    single_bytes = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("class", pat_str=pattern, mergeable_ranks=single_bytes, special_tokens={})
    return lambda character: bool(encoding.encode_ordinary(character))


@functools.cache
def _oniguruma_matches(pattern: str) -> Callable[[str], bool]:
    """Whether a character matches, to the engine of Hugging Face's `Split` and `ByteLevel`."""
    from tokenizers import Regex, pre_tokenizers

    keep_matches = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return lambda character: bool(keep_matches.pre_tokenize_str(character))


def _is_digit(character: str) -> bool:
    from tokenizers import pre_tokenizers

    return len(pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str(f"a{character}")) > 1


def _tiktoken_parts(vocabulary: str, path: Path) -> tuple[str, dict[bytes, int]]:
    """(pattern, ranks) of an encoding as `tiktoken_ext.openai_public` defines it, but read from a local file."""
    from tiktoken import load
    from tiktoken_ext import openai_public

    if vocabulary == "gpt2":
        ranks = load.data_gym_to_mergeable_bpe_ranks(str(path / "merges.txt"), str(path / "vocab.json"))
        return openai_public.r50k_pat_str, ranks
    with mock.patch.object(openai_public, "load_tiktoken_bpe", lambda url, expected_hash: _ranks(path, expected_hash)):
        definition = getattr(openai_public, f"{vocabulary}_base")()
    return definition["pat_str"], definition["mergeable_ranks"]


def _ranks(path: Path, expected_hash: str) -> dict[bytes, int]:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != expected_hash:
        raise ValueError(f"{path}: not the published file, whose SHA-256 is {expected_hash}")
    pairs = (line.split() for line in data.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def _without_added_tokens(path: Path) -> Any:
    """The tokenizer of a `tokenizer.json` that takes special tokens in a text as text, as our `encode` does."""
    import tokenizers

    contents = json.loads(path.read_bytes()) | {"added_tokens": [], "post_processor": None}
    return tokenizers.Tokenizer.from_str(json.dumps(contents))


def _smollm2(path: Path) -> Any:
    """SmolLM2's tokenizer from the vocabulary and the merges in its GGUF file, put together as its authors do."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    metadata = gguf_metadata(path)
    vocab = {token: number for number, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return tokenizer


_GGUF_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_GGUF_STRING, _GGUF_ARRAY = 8, 9


def gguf_metadata(path: Path) -> dict[str, Any]:
    """The key-value pairs at the beginning of a GGUF file (version 2 or 3, little-endian)."""
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path}: no GGUF file")
        _, _, pairs = _unpack(file, "IQQ")
        return {_gguf_value(file, _GGUF_STRING): _gguf_value(file, _unpack(file, "I")[0]) for _ in range(pairs)}


def _gguf_value(file: BinaryIO, kind: int) -> Any:
    if kind == _GGUF_STRING:
        return file.read(_unpack(file, "Q")[0]).decode()
    if kind == _GGUF_ARRAY:
        item_kind, length = _unpack(file, "IQ")
        return [_gguf_value(file, item_kind) for _ in range(length)]
    return _unpack(file, _GGUF_NUMBERS[kind])[0]


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack("<" + layout, file.read(struct.calcsize("<" + layout)))
