"""Text to ids: by the compiled encoder, or in plain Python where there cannot be one."""

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import regex

from groundup.config import nearest
from groundup.tokenizer.definition import Definition, Outline
from groundup.tokenizer.fast.bridge import Bridge, Part
from groundup.tokenizer.fast.vocabulary_tables import Tables
from groundup.tokenizer.normalize import normalize
from groundup.tokenizer.plain import PlainEncoder
from groundup.tokenizer.pretokenize import Pretokenizer, SpecialSplitter, safe_chunks, well_formed

logger = logging.getLogger(__name__)

Text = TypeVar("Text", str, bytes)
_SURROGATE = regex.compile(r"[\ud800-\udfff]")
_STREAM_CHARACTERS, _STREAM_PIECES = 1 << 13, 1 << 11  # what encode_iterable holds at a time


class Encoding:
    """The half of a `Tokenizer` that reads text. What defines it is made when it is first asked for.

    text -- special tokens cut out -- normalized -- Bridge: compiled, by threads --> ids
            those that are allowed                  PlainEncoder: where that is not --^
    """

    def __init__(self, outline: Outline, define: Callable[[], Definition], tables: Tables | None = None) -> None:
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

    def _ragged(self, found: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.array([token for text in found for token in text], self.id_type)
        return ids, np.cumsum([0, *map(len, found)], dtype=np.int64)

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


def _listed(texts: Iterable[Text]) -> list[Text]:
    if isinstance(texts, str | bytes):
        kind = "string" if isinstance(texts, str) else "bytes object"
        raise ValueError(f"texts: expected an iterable of texts, got one {kind}; write [text]")
    return list(texts)


def check_workers(workers: int | None) -> int:
    """The number of threads: as asked for, or one for each core. ValueError for fewer than one."""
    if workers is not None and workers < 1:
        raise ValueError(f"workers: {workers} is not a number of threads")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return workers or cores or 1
