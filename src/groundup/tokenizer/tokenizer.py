"""The byte-level BPE tokenizer: text to ids and back, losslessly for every text."""

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import regex

from groundup.config import nearest
from groundup.tokenizer import formats, kept, training
from groundup.tokenizer.chat import END_OF_TEXT
from groundup.tokenizer.definition import Definition, Outline
from groundup.tokenizer.fast.bridge import Bridge, Part
from groundup.tokenizer.fast.decoder import FastDecoder
from groundup.tokenizer.fast.vocabulary_tables import Tables
from groundup.tokenizer.normalize import normalize
from groundup.tokenizer.plain import PlainEncoder
from groundup.tokenizer.pretokenize import Pretokenizer, SpecialSplitter, safe_chunks, well_formed
from groundup.tokenizer.stream import StreamDecoder
from groundup.tokenizer.vocabulary import MAX_ID, check_special_tokens

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # (stage, done, total)

Text = TypeVar("Text", str, bytes)
_SURROGATE = regex.compile(r"[\ud800-\udfff]")
_STREAM_CHARACTERS, _STREAM_PIECES = 1 << 13, 1 << 11  # what encode_iterable holds at a time


@runtime_checkable
class Array(Protocol):
    """A tensor or array of ids."""

    def tolist(self) -> list[int]: ...


class Tokenizer:
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
        self._begin(definition.outline, lambda: definition)

    def _begin(self, outline: Outline, define: Callable[[], Definition], tables: Tables | None = None) -> None:
        self._outline, self._define, self._known_tables = outline, define, tables
        self._pretokenizer = Pretokenizer(outline.pattern)
        self.pattern: str = outline.pattern
        self.special_tokens: dict[str, int] = outline.special_tokens
        self.ignore_merges: bool = outline.ignore_merges
        self.ranked_by_token: bool = outline.ranked_by_token
        self.normalizer: str | None = outline.normalizer

    @cached_property
    def _definition(self) -> Definition:
        return self._define()

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
        tokenizer = cls._learn(words, num_merges, special_tokens, pattern, progress, memory)
        if state is not None:
            training.forget(state)
        return tokenizer

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
        tokenizer = cls._learn(words, num_merges, special_tokens, pattern, progress, memory)
        if state is not None:
            training.forget(state)
        return tokenizer

    @classmethod
    def _learn(
        cls,
        words: training.Words,
        num_merges: int,
        special_tokens: Sequence[str],
        pattern: str | None,
        progress: Progress | None,
        memory: int | None,
    ) -> "Tokenizer":
        merges = training.learn(words, num_merges, progress, memory=memory)
        if len(merges) < num_merges:
            logger.warning("the text allows %d merges of the %d asked for", len(merges), num_merges)
        tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]
        return cls(dict(enumerate(tokens)), merges, list(special_tokens), pattern)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: the rows of an embedding."""
        return self._outline.vocab_size

    @property
    def lossless(self) -> bool:
        """Whether every text comes back from its ids: all bytes have tokens, and nothing is normalized."""
        return self._outline.lossless

    @property
    def id_type(self) -> type[np.uint16] | type[np.uint32]:
        """The type of arrays of ids: uint16 for fewer than 65,536 of them, else uint32."""
        return np.uint32 if self.vocab_size >= 1 << 16 else np.uint16

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

    def encode(self, text: str, allowed_special: str | Collection[str] = ()) -> list[int]:
        """The ids of `text`.

        Special tokens in `text` are ordinary text unless named in `allowed_special` ("all" names every one),
        so what a user types never becomes a control token. Of several at one place the longest counts.
        """
        if not allowed_special and self.normalizer is None and (fast := self._fast) is not None:
            try:
                return fast.encode_list(text)
            except UnicodeEncodeError:  # surrogates
                pass
        return self._encode(well_formed(text), self._allowed(allowed_special))

    def encode_array(self, text: str, allowed_special: str | Collection[str] = ()) -> np.ndarray:
        """`encode` as an array: uint16 for a vocabulary below 65,536, else uint32."""
        if not allowed_special and self.normalizer is None and (fast := self._fast) is not None:
            try:
                return fast.encode_array(text)
            except UnicodeEncodeError:  # surrogates
                pass
        return self.encode_ragged([text], allowed_special, workers=1)[0]

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of bytes, which need not be UTF-8 and are not normalized: `decode_bytes` gives them back.

        Each byte that is not part of valid UTF-8 counts as a character that is no letter, number or white space.
        """
        if not isinstance(data, bytes):
            raise TypeError(f"data: expected bytes, not {type(data).__name__}")
        if self._fast is not None and self._fast.takes_bytes:
            return self._fast.encode_bytes(data)
        text = data.decode("utf-8", "surrogateescape")
        stood_in = _SURROGATE.sub("\uffff", text)  # unassigned for ever, and three bytes for one
        ids: list[int] = []
        start = 0
        for piece in (
            piece for block in self._pretokenizer.blocks(stood_in) for piece in self._pretokenizer.split(block)
        ):
            ids += self._plain.encode_bytes(text[start : start + len(piece)].encode("utf-8", "surrogateescape"))
            start += len(piece)
        return ids

    def encode_batch(
        self, texts: Iterable[str], allowed_special: str | Collection[str] = (), *, workers: int | None = None
    ) -> list[list[int]]:
        """`encode` of each text, by `workers` threads (default: one for each core)."""
        texts, threads = _listed(texts), check_workers(workers)
        if self._fast is None:
            return [self.encode(text, allowed_special) for text in texts]
        if not allowed_special and self.normalizer is None:
            try:
                return self._fast.encode_lists(texts, threads)
            except UnicodeEncodeError:
                pass
        ids, offsets = self.encode_ragged(texts, allowed_special, workers=workers)
        return [ids[start:end].tolist() for start, end in pairwise(offsets.tolist())]

    def encode_ragged(
        self, texts: Iterable[str], allowed_special: str | Collection[str] = (), *, workers: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts one after the other, of `id_type`, and the offsets (int64).

        Text number i has `ids[offsets[i] : offsets[i + 1]]`.
        """
        texts, threads = _listed(texts), check_workers(workers)
        if self._fast is None:
            return self._ragged([self.encode(text, allowed_special) for text in texts])
        if not allowed_special and self.normalizer is None:
            try:
                return self._fast.encode_ragged(texts, threads)
            except UnicodeEncodeError:
                pass
        allowed = self._allowed(allowed_special)
        return self._fast.encode_parts([self._parts(well_formed(text), allowed) for text in texts], threads)

    def encode_bytes_ragged(
        self, texts: Iterable[bytes], *, workers: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """`encode_bytes` of each text, in the form of `encode_ragged`. What is UTF-8 already, as in a file, need not
        become strings first, whose conversion takes as long as their encoding. TypeError for what is not bytes."""
        texts, threads = _listed(texts), check_workers(workers)
        if self._fast is not None and self._fast.takes_bytes:
            return self._fast.encode_bytes_ragged(texts, threads)
        return self._ragged([self.encode_bytes(text) for text in texts])

    def encode_file(
        self, path: str | Path, allowed_special: str | Collection[str] = "all", *, workers: int | None = None
    ) -> np.ndarray:
        """The ids of a UTF-8 file in one array, with its special tokens read as such. (For a corpus on disk see
        `groundup.data.write_shards`.) Invalid bytes become U+FFFD. With a published pattern the text is read a
        megabyte at a time, or as much as it takes to the next place to cut."""
        path, threads = Path(path), check_workers(workers)
        allowed = {token: self.special_tokens[token] for token in self._allowed(allowed_special).tokens}
        if self._fast is None or self.normalizer is not None or not self._fast.takes_bytes or not path.is_file():
            return self.encode_array(path.read_bytes().decode("utf-8", "replace"), allowed)
        return self._fast.encode_file(path, allowed, threads)

    def encode_iterable(self, iterable: Iterable[str], allowed_special: str | Collection[str] = ()) -> Iterator[int]:
        """The ids of one text that comes in parts (the lines of an open file), wherever the parts are cut.

        Memory is about a megabyte, or the longest stretch without an end of a word (with a custom pattern, or
        none: without a special token). `encode` is faster, because it remembers more words.
        """
        allowed = self._allowed(allowed_special)
        encode = (
            self._fast.streaming()
            if self._fast
            else partial(self._plain.encode, cache=self._plain.new_cache(_STREAM_PIECES))
        )
        for chunk in safe_chunks(map(well_formed, iterable), self._pretokenizer, allowed, _STREAM_CHARACTERS):
            for part in self._parts(chunk, allowed):
                if isinstance(part, int):
                    yield part
                else:
                    yield from encode(part)

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

    def _ragged(self, found: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.array([token for text in found for token in text], self.id_type)
        return ids, np.cumsum([0, *map(len, found)], dtype=np.int64)

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
    def _recalled(cls, outline: Outline, tables: Tables, define: Callable[[], Definition]) -> "Tokenizer":
        """A tokenizer whose tables are known; what else defines it is read when it is asked for."""
        tokenizer = cls.__new__(cls)
        tokenizer._begin(outline, define, tables)
        return tokenizer

    @classmethod
    def from_parts(cls, parts: formats.Parts) -> "Tokenizer":
        """The tokenizer that these parts define. ValueError when they contradict each other."""
        definition = Definition.of(parts)
        tokenizer = cls.__new__(cls)
        tokenizer._begin(definition.outline, lambda: definition)
        return tokenizer

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

    def _encode(self, text: str, allowed: SpecialSplitter) -> list[int]:
        """The ids of a text without surrogates."""
        encode = self._fast.encode_list if self._fast else self._plain.encode
        ids: list[int] = []
        for part in self._parts(text, allowed):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += encode(part)
        return ids

    def _parts(self, text: str, allowed: SpecialSplitter) -> list[Part]:
        """A text cut at the special tokens that are allowed, with their ids, and normalized between them."""
        return [
            self.special_tokens[part] if is_special else self._normalized(part)
            for part, is_special in allowed.split(text)
        ]

    def _normalized(self, text: str) -> str:
        return text if self.normalizer is None else normalize(text)

    @cached_property
    def _plain(self) -> PlainEncoder:
        known = self._definition
        return PlainEncoder(self._pretokenizer, known.byte_ids, known.ranks, known.whole)

    @cached_property
    def _fast(self) -> Bridge | None:
        """The compiled encoder; None, with the reason said aloud, where there cannot be one."""
        if self._tables is None:
            logger.warning("a vocabulary of %d ids is encoded in plain Python, slowly", self.vocab_size)
            return None
        try:
            return Bridge(self._pretokenizer, self._tables)
        except ImportError as error:
            logger.warning("text is encoded in plain Python, slowly: %s", error)
            return None

    @cached_property
    def _tables(self) -> Tables | None:
        return self._known_tables or self._definition.tables()

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

    def _allowed(self, allowed_special: str | Collection[str]) -> SpecialSplitter:
        if allowed_special == "all":
            return self._all_special
        if isinstance(allowed_special, str):
            raise ValueError(f'allowed_special: expected "all" or a collection of tokens, not {allowed_special!r}')
        allowed_special = list(allowed_special)
        for token in allowed_special:
            if token not in self.special_tokens:
                known = nearest(token, self.special_tokens)
                raise ValueError(f"allowed_special: no special token {token!r}{known}")
        return SpecialSplitter(allowed_special)

    @cached_property
    def _all_special(self) -> SpecialSplitter:
        return SpecialSplitter(self.special_tokens)


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


def _listed(texts: Iterable[Text]) -> list[Text]:
    if isinstance(texts, str | bytes):
        kind = "string" if isinstance(texts, str) else "bytes object"
        raise ValueError(f"texts: expected an iterable of texts, got one {kind}; write [text]")
    return list(texts)


def _as_array(ids: Array) -> np.ndarray:
    try:
        return np.asarray(ids)
    except TypeError:  # a tensor on a GPU
        return np.array(ids.tolist())


def check_workers(workers: int | None) -> int:
    """The number of threads: as asked for, or one for each core. ValueError for fewer than one."""
    if workers is not None and workers < 1:
        raise ValueError(f"workers: {workers} is not a number of threads")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return workers or cores or 1
