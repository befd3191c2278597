"""Encoding in plain Python: the definition of what a text's ids are, and the way for what the fast path cannot take."""

from collections.abc import Mapping
from itertools import chain

from groundup.tokenizer.bpe import PieceCache, Ranks, apply_merges
from groundup.tokenizer.pretokenize import Pretokenizer


class PlainEncoder:
    """Splits by the pattern, looks words up in a bounded cache, and merges those that are not there.

    `whole` are the tokens that stay whole when they are a pre-token (`ignore_merges`), by their bytes. A byte without
    an id disappears.
    """

    def __init__(
        self, pretokenizer: Pretokenizer, byte_ids: list[int | None], ranks: Ranks, whole: Mapping[bytes, int]
    ) -> None:
        self._pretokenizer = pretokenizer
        self._byte_ids, self._ranks, self._whole = byte_ids, ranks, whole
        self._cache = self.new_cache()

    def new_cache(self, capacity: int | None = None) -> PieceCache:
        """An empty cache of words, for a caller who wants one of their own."""
        return PieceCache(self._encode_piece, capacity) if capacity else PieceCache(self._encode_piece)

    def encode(self, text: str, cache: PieceCache | None = None) -> list[int]:
        """The ids of a text without surrogates; nothing in it is a special token."""
        cache = self._cache if cache is None else cache
        ids: list[int] = []
        for block in self._pretokenizer.blocks(text):
            ids.extend(chain.from_iterable(map(cache.__getitem__, self._pretokenizer.split(block))))
        return ids

    def encode_bytes(self, piece: bytes) -> list[int]:
        """The ids of one pre-token, given as bytes."""
        whole = self._whole.get(piece)
        if whole is not None:
            return [whole]
        known = (self._byte_ids[byte] for byte in piece)
        return apply_merges([token for token in known if token is not None], self._ranks)

    def _encode_piece(self, piece: str) -> list[int]:
        return self.encode_bytes(piece.encode())
