"""The byte-level BPE tokenizer: text to ids and back, losslessly for every text.

train, load     where one comes from
encode          see `encoding`
decode, stream  ids to bytes to text
save, parts     what defines it
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from groundup.tokenizer import formats, kept, training
from groundup.tokenizer.chat import END_OF_TEXT
from groundup.tokenizer.definition import Definition, Outline
from groundup.tokenizer.encoding import Encoding
from groundup.tokenizer.fast.decoder import FastDecoder
from groundup.tokenizer.fast.vocabulary_tables import Tables
from groundup.tokenizer.stream import StreamDecoder
from groundup.tokenizer.vocabulary import MAX_ID, check_special_tokens

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # (stage, done, total)


@runtime_checkable
class Array(Protocol):
    """A tensor or array of ids."""

    def tolist(self) -> list[int]: ...


class Tokenizer(Encoding):
    r"""Byte-level BPE with special tokens (Sennrich et al. 2016; Radford et al. 2019).

    `vocab` maps ids to bytes; merges are in the order learned; special tokens not in `vocab` get the ids
    after it. `merges=None` means what tiktoken means by its ranks: every pair whose concatenation is a token
    may merge, the lowest id first. `ignore_merges`, Hugging Face's name for it, makes a pre-token that is a
    token encode to it even if the merges do not reach it, as tiktoken does. In what `train` returns, ids
    0..255 are the bytes, then come the merges in order, then the special tokens.

    >>> tokenizer = Tokenizer.train_from_iterator(["the cat in the hat"], 260, ["<|endoftext|>"])
    >>> tokenizer.merges
    [(b't', b'h'), (b'th', b'e'), (b'a', b't')]
    >>> tokenizer.encode("the hat<|endoftext|>", allowed_special="all")
    [257, 32, 104, 258, 259]
    >>> tokenizer.decode(tokenizer.encode("Hello, 🌍! 你好!"))
    'Hello, 🌍! 你好!'

    Surrogate code points, which UTF-8 cannot express, are encoded as U+FFFD; every other text comes back
    exactly.
    """

    def __init__(
        self,
        vocab: Mapping[int, bytes],
        merges: Sequence[tuple[bytes, bytes]] | None,
        special_tokens: Sequence[str] | Mapping[str, int] = (),
        pattern: str | None = "gpt2",
        *,
        ignore_merges: bool = False,
        normalizer: str | None = None,
    ) -> None:
        definition = Definition(vocab, merges, special_tokens, pattern, ignore_merges, normalizer)
        super().__init__(definition.outline, lambda: definition)

    @property
    def vocab(self) -> dict[int, bytes]:
        """Id -> bytes, special tokens included."""
        return self._recalled_vocab if self._known_tables else self._definition.vocab

    @cached_property
    def _recalled_vocab(self) -> dict[int, bytes]:
        assert self._known_tables is not None
        text, offsets = self._known_tables.token_text.tobytes(), self._known_tables.offsets.tolist()
        return {token: text[start:end] for token, (start, end) in enumerate(pairwise(offsets)) if end > start}

    @property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """The merges in order of rank."""
        return self._definition.merges

    @classmethod
    def train(
        cls,
        files: str | Path | Sequence[str | Path],
        vocab_size: int,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        pattern: str | None = "gpt2",
        progress: Progress | None = None,
        *,
        workers: int | None = None,
        memory: int | None = None,
        state: str | Path | None = None,
    ) -> "Tokenizer":
        """Learn a vocabulary from UTF-8 text files, which may be larger than memory.

        Special tokens separate documents: they are cut out before pre-tokenization, and no merge spans them.
        A warning says where invalid UTF-8 was read as U+FFFD, and when the text allows fewer merges than
        asked for, which makes the vocabulary smaller. `progress` is told (stage, done, total): bytes while
        "reading", then merges while "merging".

        workers: threads that read and count (default: one for each core); their number does not change the
            result, nor does the order of the files.
        memory: bytes that training may take; ValueError when that is too little.
        state: a folder for what was counted so far. A run that was killed goes on from there.

        ValueError when `vocab_size` has no room for the 256 bytes and the special tokens; OSError when a file
        cannot be read.
        """
        paths = [Path(files)] if isinstance(files, (str, Path)) else [Path(file) for file in files]
        num_merges = _num_merges(vocab_size, special_tokens)
        words = training.count_files(
            paths, special_tokens, pattern, progress, workers=workers, memory=memory, state=state
        )
        return cls._learn(words, num_merges, special_tokens, pattern, progress, memory, state)

    @classmethod
    def train_from_iterator(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        pattern: str | None = "gpt2",
        progress: Progress | None = None,
        *,
        workers: int | None = None,
        memory: int | None = None,
        state: str | Path | None = None,
    ) -> "Tokenizer":
        """Learn a vocabulary from texts, each a document of its own. Otherwise as `train`."""
        if isinstance(texts, str):
            raise ValueError("texts: expected an iterable of texts, got one string; write [text]")
        num_merges = _num_merges(vocab_size, special_tokens)
        words = training.count_texts(
            texts, special_tokens, pattern, progress, workers=workers, memory=memory, state=state
        )
        return cls._learn(words, num_merges, special_tokens, pattern, progress, memory, state)

    @classmethod
    def _learn(
        cls,
        words: training.Words,
        num_merges: int,
        special_tokens: Sequence[str],
        pattern: str | None,
        progress: Progress | None,
        memory: int | None,
        state: str | Path | None,
    ) -> "Tokenizer":
        merges = training.learn(words, num_merges, progress, memory=memory)
        if len(merges) < num_merges:
            logger.warning("the text allows %d merges of the %d asked for", len(merges), num_merges)
        tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]
        tokenizer = cls(dict(enumerate(tokens)), merges, list(special_tokens), pattern)
        if state is not None:
            training.forget(state)
        return tokenizer

    @property
    def end_of_text(self) -> int:
        """The id of `<|endoftext|>`, which closes a document. ValueError when the tokenizer has none."""
        if END_OF_TEXT not in self.special_tokens:
            raise ValueError(f"no special token {END_OF_TEXT!r}; there are: {list(self.special_tokens)}")
        return self.special_tokens[END_OF_TEXT]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the serialised form: two tokenizers with the same one do the same to every text."""
        return hashlib.sha256(formats.to_json(self.parts()).encode()).hexdigest()

    def decode(self, ids: Iterable[int] | Array) -> str:
        """The text of `ids`; what is not valid UTF-8 becomes U+FFFD. ValueError for an id that is none."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int] | Array) -> bytes:
        """The bytes of `ids` exactly."""
        if type(ids) is not list:
            if isinstance(ids, Array):
                return self._decode_array(_as_array(ids))
            ids = list(ids)
        if self._fast is not None and (data := self._decoder.decode_list(ids)) is not None:
            return data
        try:
            return b"".join(map(self.vocab.__getitem__, ids))
        except KeyError as error:
            raise self._unknown_id(error.args[0]) from None

    def _decode_array(self, ids: np.ndarray) -> bytes:
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(f"ids: expected integers on one axis, got {ids.dtype} of shape {list(ids.shape)}")
        if self._fast is None:
            return self.decode_bytes(ids.tolist())
        try:
            return self._decoder.decode(ids)
        except IndexError as error:
            raise self._unknown_id(ids[error.args[0]]) from None

    def stream(self) -> StreamDecoder:
        """A decoder that takes one id at a time and never emits a part of a character."""
        return StreamDecoder(self._token_bytes)

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json` as Hugging Face reads it: to a `.json` path, else into the directory `path`.

        A directory also gets `tokenizer_config.json`, with the chat template when the tokens of chats exist.
        """
        formats.save(self.parts(), Path(path))

    @classmethod
    def load(
        cls,
        path: str | Path,
        pattern: str | None = None,
        special_tokens: Sequence[str] | Mapping[str, int] | None = None,
    ) -> "Tokenizer":
        """Read a `tokenizer.json` (ours, or any byte-level BPE of Hugging Face's), tiktoken's ranks, GPT-2's two
        files or GGUF, as a file or in a folder; see `formats.load` for which of them need the other arguments.

        ValueError, saying what and where, for a file that is damaged or that does what this tokenizer cannot.
        """
        path = Path(path).resolve()
        files = formats.sources(path)
        digest = kept.digest_of(files, pattern, special_tokens)
        found = kept.load(digest) if digest else None
        if digest and found is not None:
            return cls._recalled(*found, partial(_reread, path, pattern, special_tokens, digest))
        try:
            tokenizer = cls.from_parts(formats.load(path, pattern, special_tokens))
        except ValueError as error:
            raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error
        if digest is None or len(tokenizer.vocab) < kept.SMALLEST or (tables := tokenizer._tables) is None:
            return tokenizer
        if kept.digest_of(files, pattern, special_tokens) == digest:  # what was parsed is what was hashed
            kept.keep(digest, tokenizer._outline, tables)
        return tokenizer

    @classmethod
    def _recalled(cls, outline: Outline, tables: Tables | None, define: Callable[[], Definition]) -> "Tokenizer":
        """A tokenizer whose tables may be known; what else defines it is read when it is asked for."""
        tokenizer = cls.__new__(cls)
        Encoding.__init__(tokenizer, outline, define, tables)
        return tokenizer

    @classmethod
    def from_parts(cls, parts: formats.Parts) -> "Tokenizer":
        """The tokenizer that these parts define. ValueError when they contradict each other."""
        definition = Definition.of(parts)
        return cls._recalled(definition.outline, None, lambda: definition)

    def parts(self) -> formats.Parts:
        """What defines the tokenizer, as `from_parts` takes it."""
        return self._definition.parts()

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer.from_parts, (self.parts(),)

    def __repr__(self) -> str:
        return (
            f"Tokenizer(vocab_size={self.vocab_size}, pattern={self.pattern!r}, "
            f"special_tokens={list(self.special_tokens)})"
        )

    @cached_property
    def _decoder(self) -> FastDecoder:
        assert self._tables is not None, "asked for only beside the compiled encoder"
        return FastDecoder(self._tables)

    def _token_bytes(self, token: int) -> bytes:
        try:
            return self.vocab[token]
        except KeyError:
            raise self._unknown_id(token) from None

    def _unknown_id(self, token: object) -> ValueError:
        return ValueError(f"id {token}: not in the vocabulary, whose ids are below {self.vocab_size}")


def _reread(path: str | Path, pattern: str | None, special_tokens: Any, digest: str) -> Definition:
    if kept.digest_of(formats.sources(Path(path)), pattern, special_tokens) != digest:
        raise ValueError(f"{path}: the tokenizer changed on disk since it was loaded; load it again")
    return Definition.of(formats.load(path, pattern, special_tokens))


def _num_merges(vocab_size: int, special_tokens: Sequence[str]) -> int:
    needed = 256 + len(check_special_tokens(special_tokens))
    if not needed <= vocab_size <= MAX_ID + 1:
        raise ValueError(
            f"vocab_size {vocab_size}: expected {needed} to {MAX_ID + 1}; "
            f"256 bytes and {needed - 256} special tokens are always there"
        )
    return vocab_size - needed


def _as_array(ids: Array) -> np.ndarray:
    try:
        return np.asarray(ids)
    except TypeError:  # a tensor on a GPU
        return np.array(ids.tolist())
