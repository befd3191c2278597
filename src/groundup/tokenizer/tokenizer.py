"""The byte-level BPE tokenizer: text to ids and back, losslessly for every text."""

import hashlib
import logging
import multiprocessing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from groundup.config import nearest
from groundup.tokenizer import formats
from groundup.tokenizer.bpe import PieceCache, apply_merges, learn_merges, rank_merges, splits
from groundup.tokenizer.chat import END_OF_TEXT
from groundup.tokenizer.counting import PretokenCounter, read_text
from groundup.tokenizer.pretokenize import Pretokenizer, SpecialSplitter, safe_chunks, well_formed
from groundup.tokenizer.stream import StreamDecoder
from groundup.tokenizer.vocabulary import (
    MAX_ID,
    check_special_tokens,
    ids_of_bytes,
    ids_of_tokens,
    place_special_tokens,
)

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # (stage, done, total)

_STREAM_CHARACTERS, _STREAM_PIECES = 1 << 14, 1 << 11  # what encode_iterable holds at a time


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
    ) -> None:
        self._pretokenizer = Pretokenizer(pattern)
        self.pattern: str = self._pretokenizer.pattern
        self.ranked_by_token: bool = merges is None
        self.ignore_merges: bool = ignore_merges or self.ranked_by_token
        self.merges: list[tuple[bytes, bytes]] = (
            [(left, right) for left, right in merges] if merges is not None else splits(vocab)
        )
        self.special_tokens: dict[str, int] = place_special_tokens(vocab, self.merges, special_tokens)
        placed = {token_id: token.encode() for token, token_id in self.special_tokens.items()}
        self.vocab: dict[int, bytes] = dict(vocab) | placed
        ids = ids_of_tokens(self.vocab)
        self._byte_ids = ids_of_bytes(ids)
        self._ranks = rank_merges(self.merges, ids)
        if self.ranked_by_token:
            self._ranks = {pair: (token, token) for pair, (_, token) in self._ranks.items()}
        special = self.special_tokens.values()
        self._whole = {token: id for token, id in ids.items() if id not in special} if self.ignore_merges else {}
        self._cache = PieceCache(self._encode_piece)

    @classmethod
    def train(
        cls,
        files: str | Path | Sequence[str | Path],
        vocab_size: int,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        pattern: str | None = "gpt2",
        progress: Progress | None = None,
    ) -> "Tokenizer":
        """Learn a vocabulary from UTF-8 text files, read in bounded memory.

        Special tokens separate documents: they are cut out before pre-tokenization, and no merge spans them.
        A warning says where invalid UTF-8 was read as U+FFFD, and when the text allows fewer merges than
        asked for, which makes the vocabulary smaller. `progress` is told (stage, done, total): bytes while
        "reading", then merges while "merging". ValueError when `vocab_size` has no room for the 256 bytes
        and the special tokens; OSError when a file cannot be read.
        """
        paths = [Path(files)] if isinstance(files, (str, Path)) else [Path(file) for file in files]
        num_merges = _num_merges(vocab_size, special_tokens)
        counter = PretokenCounter(pattern, special_tokens)
        total = sum(path.stat().st_size for path in paths)
        before = 0
        for path in paths:
            counter.add(read_text(path, _reading(progress, before, total)))
            before += path.stat().st_size
        return cls._learn(counter, num_merges, special_tokens, pattern, progress)

    @classmethod
    def train_from_iterator(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        pattern: str | None = "gpt2",
        progress: Progress | None = None,
    ) -> "Tokenizer":
        """Learn a vocabulary from texts, each a document of its own. Otherwise as `train`."""
        if isinstance(texts, str):
            raise ValueError("texts: expected an iterable of texts, got one string; write [text]")
        num_merges = _num_merges(vocab_size, special_tokens)
        counter = PretokenCounter(pattern, special_tokens)
        for text in texts:
            counter.add([text])
        return cls._learn(counter, num_merges, special_tokens, pattern, progress)

    @classmethod
    def _learn(
        cls,
        counter: PretokenCounter,
        num_merges: int,
        special_tokens: Sequence[str],
        pattern: str | None,
        progress: Progress | None,
    ) -> "Tokenizer":
        report = (lambda done, total: progress("merging", done, total)) if progress else None
        merges = learn_merges(counter.counts(), num_merges, report)
        if len(merges) < num_merges:
            logger.warning("the text allows %d merges of the %d asked for", len(merges), num_merges)
        tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]
        return cls(dict(enumerate(tokens)), merges, list(special_tokens), pattern)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: the rows of an embedding."""
        return max(self.vocab) + 1

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
        return self._encode(well_formed(text), self._allowed(allowed_special), self._cache)

    def _encode(self, text: str, allowed: SpecialSplitter, cache: PieceCache) -> list[int]:
        ids: list[int] = []
        for part, is_special in allowed.split(text):
            if is_special:
                ids.append(self.special_tokens[part])
            else:
                for block in self._pretokenizer.blocks(part):
                    pieces = self._pretokenizer.split(block)
                    ids.extend(chain.from_iterable(map(cache.__getitem__, pieces)))
        return ids

    def encode_batch(
        self, texts: Iterable[str], allowed_special: str | Collection[str] = (), *, workers: int | None = None
    ) -> list[list[int]]:
        """`encode` of each text, by `workers` processes when asked for, which pays from tens of megabytes on.

        They are started afresh (spawned): a script that uses them needs its `if __name__ == "__main__":`.
        """
        if not workers or workers == 1:
            return [self.encode(text, allowed_special) for text in texts]
        if workers < 1:
            raise ValueError(f"workers: {workers} is not a number of processes")
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, _start_worker, (self, allowed_special)) as pool:
            return list(pool.map(_encode_in_worker, texts, chunksize=64))

    def encode_iterable(self, iterable: Iterable[str], allowed_special: str | Collection[str] = ()) -> Iterator[int]:
        """The ids of one text that comes in parts (the lines of an open file), wherever the parts are cut.

        Memory is about a megabyte, or the longest stretch without an end of a word (with a custom pattern, or
        none: without a special token). `encode` is faster, because it remembers more words.
        """
        allowed = self._allowed(allowed_special)
        cache = PieceCache(self._encode_piece, _STREAM_PIECES)
        for chunk in safe_chunks(map(well_formed, iterable), self._pretokenizer, allowed, _STREAM_CHARACTERS):
            yield from self._encode(chunk, allowed, cache)

    def decode(self, ids: Iterable[int] | Array) -> str:
        """The text of `ids`; what is not valid UTF-8 becomes U+FFFD. ValueError for an id that is none."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int] | Array) -> bytes:
        """The bytes of `ids` exactly."""
        numbers = ids.tolist() if isinstance(ids, Array) else ids
        try:
            return b"".join(map(self.vocab.__getitem__, numbers))
        except KeyError as error:
            raise self._unknown_id(error.args[0]) from None

    def stream(self) -> StreamDecoder:
        """A decoder that takes one id at a time and never emits a part of a character."""
        return StreamDecoder(self._token_bytes)

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json` as Hugging Face reads it: to a `.json` path, else into the directory `path`.

        A directory also gets `tokenizer_config.json`, with the chat template when the tokens of chats exist.
        """
        formats.save(self.parts(), Path(path))

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a `tokenizer.json`, or that of a directory: ours, or any byte-level BPE of Hugging Face's.

        ValueError, saying what and where, for a file that is damaged or that does what this tokenizer cannot.
        """
        parts = formats.load(Path(path))
        try:
            return cls.from_parts(parts)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_parts(cls, parts: formats.Parts) -> "Tokenizer":
        """The tokenizer that these parts define. ValueError when they contradict each other."""
        return cls(parts.vocab, parts.merges, parts.special_tokens, parts.pattern, ignore_merges=parts.ignore_merges)

    def parts(self) -> formats.Parts:
        """What defines the tokenizer, as `from_parts` takes it."""
        merges = None if self.ranked_by_token else self.merges
        return formats.Parts(self.vocab, merges, self.special_tokens, self.pattern, self.ignore_merges)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer.from_parts, (self.parts(),)

    def __repr__(self) -> str:
        return (
            f"Tokenizer(vocab_size={self.vocab_size}, pattern={self.pattern!r}, "
            f"special_tokens={list(self.special_tokens)})"
        )

    def _encode_piece(self, piece: str) -> list[int]:
        whole = self._whole.get(piece.encode()) if self._whole else None
        if whole is not None:
            return [whole]
        return apply_merges([self._byte_ids[byte] for byte in piece.encode()], self._ranks)

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
        for token in allowed_special:
            if token not in self.special_tokens:
                known = nearest(token, self.special_tokens)
                raise ValueError(f"allowed_special: no special token {token!r}{known}")
        return SpecialSplitter(allowed_special)

    @cached_property
    def _all_special(self) -> SpecialSplitter:
        return SpecialSplitter(self.special_tokens)


def _num_merges(vocab_size: int, special_tokens: Sequence[str]) -> int:
    needed = 256 + len(check_special_tokens(special_tokens))
    if not needed <= vocab_size <= MAX_ID + 1:
        raise ValueError(
            f"vocab_size {vocab_size}: expected {needed} to {MAX_ID + 1}; "
            f"256 bytes and {needed - 256} special tokens are always there"
        )
    return vocab_size - needed


def _reading(progress: Progress | None, before: int, total: int) -> Callable[[int], None] | None:
    return (lambda done: progress("reading", before + done, total)) if progress else None


_worker: dict[str, Any] = {}  # what a worker process of encode_batch was started with


def _start_worker(tokenizer: Tokenizer, allowed_special: str | Collection[str]) -> None:
    _worker.update(tokenizer=tokenizer, allowed_special=allowed_special)


def _encode_in_worker(text: str) -> list[int]:
    return _worker["tokenizer"].encode(text, _worker["allowed_special"])
