"""The fast path of one tokenizer: strings and special tokens in, lists or arrays out, on as many cores as there are."""

import ctypes
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from groundup.tokenizer.fast.encoder import FastEncoder
from groundup.tokenizer.fast.file_encoder import FileEncoder
from groundup.tokenizer.fast.front import SCANNERS
from groundup.tokenizer.fast.vocabulary_tables import Tables
from groundup.tokenizer.pretokenize import Pretokenizer

Part = str | int  # text, or the id of a special token

_BYTES_PER_THREAD = 1 << 18  # less is not worth a thread
_BOUNDARY = re.compile(rb"[A-Za-z0-9](?=[ \n])")  # every published pattern ends a pre-token there
_WINDOW = 1 << 12


class Memory(NamedTuple):
    """Texts in memory: addresses and lengths (int64), a length of -1 - n being the special token n."""

    addresses: np.ndarray
    lengths: np.ndarray


class Bridge:
    """Encodes for a `Tokenizer`. Patterns without a scanner are split by the `regex` module, and merged here."""

    def __init__(self, pretokenizer: Pretokenizer, tables: Tables) -> None:
        self._pretokenizer = pretokenizer
        self._scans = pretokenizer.pattern in SCANNERS
        self._encoder = FastEncoder(pretokenizer.pattern if self._scans else None, tables)

    def encode_list(self, text: str) -> list[int]:
        """The ids of a text. UnicodeEncodeError for surrogates."""
        return self._encoder.encode_list(text) if self._scans else self._by_pieces(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """The same as an array, by one thread."""
        return self._encoder.encode_array(text) if self._scans else self._by_pieces(text)

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of bytes that need not be UTF-8; only for patterns with a scanner."""
        array = np.frombuffer(data, np.uint8)
        return self._encoder.encode_lists(np.array([array.ctypes.data], np.int64), np.array([array.size], np.int64))[0]

    @property
    def takes_bytes(self) -> bool:
        """Whether bytes may be given."""
        return self._scans

    def encode_lists(self, texts: Sequence[str], workers: int) -> list[list[int]]:
        """The ids of each text as a list."""
        if not self._scans:
            return [self._by_pieces(text).tolist() for text in texts]
        memory = self._find(texts)
        shares = self._map(self._encoder.encode_lists, memory, workers)
        return [ids for share in shares for ids in share]

    def encode_ragged(self, texts: Sequence[str], workers: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts, one after the other, and where each begins, with the end of the last (int64)."""
        if not self._scans:
            found = [self._by_pieces(text) for text in texts]
            return self._joined(found), np.cumsum([0, *map(len, found)], dtype=np.int64)
        return self.encode_memory(self._find(texts), workers)

    def encode_bytes_ragged(self, texts: Sequence[bytes], workers: int) -> tuple[np.ndarray, np.ndarray]:
        """The same for bytes; only where it `takes_bytes`. The texts must not change or go away meanwhile."""
        return self.encode_memory(Memory(*self._encoder.find_bytes(list(texts))), workers)

    def encode_parts(self, texts: Sequence[Sequence[Part]], workers: int) -> tuple[np.ndarray, np.ndarray]:
        """The same for texts in parts, of which some are special tokens."""
        parts = [part for text in texts for part in text]
        ids, offsets = self._encode_flat(parts, workers)
        firsts = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        return ids, offsets[firsts]

    def _encode_flat(self, parts: Sequence[Part], workers: int) -> tuple[np.ndarray, np.ndarray]:
        strings = [part if isinstance(part, str) else "" for part in parts]
        specials = np.array([-1 if isinstance(part, str) else part for part in parts], np.int64)
        if self._scans:
            addresses, lengths = self._find(strings)
            return self.encode_memory(Memory(addresses, np.where(specials < 0, lengths, -1 - specials)), workers)
        found = [
            self._by_pieces(part) if isinstance(part, str) else np.array([part], self._encoder.output_type)
            for part in parts
        ]
        return self._joined(found), np.cumsum([0, *map(len, found)], dtype=np.int64)

    def encode_file(self, path: Path, special_tokens: Mapping[str, int], workers: int) -> np.ndarray:
        """The ids of a file of UTF-8; only where it `takes_bytes`. OSError when it cannot be read."""
        return FileEncoder(self._encoder, self._pretokenizer.pattern, special_tokens).encode(path, workers)

    def streaming(self) -> Callable[[str], list[int]]:
        """`encode_list` with tables that stay under a megabyte."""
        return self._encoder.small().encode_long if self._scans else self.encode_list

    def encode_memory(self, memory: Memory, workers: int) -> tuple[np.ndarray, np.ndarray]:
        """`encode_ragged` of texts in memory, which the caller keeps."""
        ids, offsets, _ = self._encode_memory(memory, workers)
        return ids, offsets

    def _encode_memory(self, memory: Memory, workers: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """The ids, the offsets, and whether it was valid UTF-8. Long texts are cut for several threads."""
        cut, firsts = _cut_long(memory, workers)
        shares = self._map(self._encoder.encode, cut, workers)
        ids = self._joined([share.ids for share in shares])
        starts = np.cumsum([0, *(share.ids.size for share in shares)], dtype=np.int64)
        ends = [share.ends + start for share, start in zip(shares, starts, strict=False)]
        return ids, np.concatenate([[0], *ends])[firsts], all(share.is_valid for share in shares)

    def _find(self, texts: Sequence[str]) -> Memory:
        return Memory(*self._encoder.find(list(texts)))

    def _joined(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        if len(arrays) == 1:
            return arrays[0]
        return np.concatenate(arrays) if arrays else np.empty(0, self._encoder.output_type)

    def _map(self, encode: Callable[..., Any], memory: Memory, workers: int) -> list[Any]:
        """`encode` on consecutive shares of about equal size, by threads where they pay."""
        sizes = np.maximum(memory.lengths, 1)
        threads = min(workers, max(1, int(sizes.sum()) // _BYTES_PER_THREAD))
        if threads == 1:
            return [encode(*memory)]
        shares = list(_shares(sizes, threads))
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda share: encode(memory.addresses[share], memory.lengths[share]), shares))

    def _by_pieces(self, text: str) -> np.ndarray:
        """The ids of a text that the pre-tokenizer splits."""
        found = []
        for block in self._pretokenizer.blocks(text):
            pieces = [piece.encode() for piece in self._pretokenizer.split(block)]
            found.append(
                self._encoder.encode_pieces(b"".join(pieces), np.cumsum([0, *map(len, pieces)], dtype=np.int64)[1:])
            )
        return self._joined(found)


def _shares(sizes: np.ndarray, count: int) -> Iterator[slice]:
    """Consecutive ranges, at most `count` and none empty, whose sums of sizes are about equal."""
    sums = np.cumsum(sizes)
    wanted = sums[-1] * np.arange(1, count) / count
    edges = sorted({0, *(np.searchsorted(sums, wanted) + 1).tolist(), len(sizes)})
    return (slice(first, end) for first, end in pairwise(edges) if first < end)


def _cut_long(memory: Memory, workers: int) -> tuple[Memory, np.ndarray]:
    """Texts cut into parts that one thread each can encode, and which part each text begins with (and the end)."""
    longest = max(_BYTES_PER_THREAD, int(np.maximum(memory.lengths, 0).sum()) // max(workers, 1) + 1)
    if workers == 1 or memory.lengths.max(initial=0) <= longest:
        return memory, np.arange(len(memory.lengths) + 1)
    addresses, lengths, firsts = [], [], [0]
    for address, length in zip(memory.addresses.tolist(), memory.lengths.tolist(), strict=True):
        edges = [0, *_cuts(address, length, longest), length] if length > longest else [0, length]
        addresses += [address + edge for edge in edges[:-1]]
        lengths += [end - start for start, end in pairwise(edges)]
        firsts.append(len(lengths))
    return Memory(np.array(addresses, np.int64), np.array(lengths, np.int64)), np.array(firsts)


def _cuts(address: int, length: int, longest: int) -> Iterator[int]:
    """Places after each `longest` bytes or so where every published pattern ends a pre-token."""
    for wanted in range(longest, length - _WINDOW, longest):
        match = _BOUNDARY.search(ctypes.string_at(address + wanted, _WINDOW))
        if match:
            yield wanted + match.end()
