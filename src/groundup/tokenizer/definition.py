"""What a tokenizer is, checked and ready to encode by: ids of tokens and bytes, ranks of pairs, tables for kernels."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from groundup.tokenizer.bpe import Ranks, rank_merges, splits
from groundup.tokenizer.fast.vocabulary_tables import MAX_IDS, MAX_RANKS, Tables, make_tables
from groundup.tokenizer.parts import Parts, SpecialTokens
from groundup.tokenizer.pretokenize import canonical
from groundup.tokenizer.vocabulary import ids_of_tokens, known_byte_ids, place_special_tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outline:
    """The small facts of a tokenizer, without its vocabulary; each can be written as JSON."""

    pattern: str
    special_tokens: dict[str, int]
    vocab_size: int
    ignore_merges: bool
    ranked_by_token: bool
    normalizer: str | None
    lossless: bool


class Definition:
    """A sound tokenizer. ValueError when what it is made of contradicts itself; see `Tokenizer` for the arguments."""

    def __init__(
        self,
        vocab: Mapping[int, bytes],
        merges: Sequence[tuple[bytes, bytes]] | None,
        special_tokens: SpecialTokens,
        pattern: str | None,
        ignore_merges: bool,
        normalizer: str | None,
    ) -> None:
        if normalizer not in (None, "NFC"):
            raise ValueError(f"normalizer {normalizer!r}: expected NFC or none")
        self.merges = (
            [(left, right) for left, right in merges]
            if merges is not None
            else splits(_ordinary(vocab, special_tokens))
        )
        placed = place_special_tokens(vocab, self.merges, special_tokens)
        self.vocab = dict(vocab) | {token_id: token.encode() for token, token_id in placed.items()}
        self.ids = ids_of_tokens(self.vocab)
        self.byte_ids = known_byte_ids(self.ids)
        ranks = rank_merges(self.merges, self.ids)
        self.ranks: Ranks = ranks if merges is not None else {p: (token, token) for p, (_, token) in ranks.items()}
        self.outline = Outline(
            pattern=canonical(pattern),
            special_tokens=placed,
            vocab_size=max(self.vocab) + 1,
            ignore_merges=ignore_merges or merges is None,
            ranked_by_token=merges is None,
            normalizer=normalizer,
            lossless=None not in self.byte_ids and normalizer is None,
        )
        if missing := self.byte_ids.count(None):
            logger.info("%d of the 256 bytes have no token and disappear from text", missing)

    @classmethod
    def of(cls, parts: Parts) -> "Definition":
        """What these parts define."""
        return cls(
            parts.vocab, parts.merges, parts.special_tokens, parts.pattern, parts.ignore_merges, parts.normalizer
        )

    def parts(self) -> Parts:
        """What `of` makes the same definition of."""
        outline = self.outline
        merges = None if outline.ranked_by_token else self.merges
        return Parts(
            self.vocab, merges, outline.special_tokens, outline.pattern, outline.ignore_merges, outline.normalizer
        )

    @cached_property
    def whole(self) -> dict[bytes, int]:
        """The tokens that stay whole when they are a pre-token."""
        special = set(self.outline.special_tokens.values())
        return {token: id for token, id in self.ids.items() if id not in special} if self.outline.ignore_merges else {}

    def tables(self) -> Tables | None:
        """The same for the kernels; None for a vocabulary that is too large for them."""
        if self.outline.vocab_size > MAX_IDS or len(self.ranks) >= MAX_RANKS:
            return None
        pairs = np.array([(*pair, rank) for pair, (rank, _) in self.ranks.items()], np.int64).reshape(-1, 3)
        rank_ids = np.zeros(int(pairs[:, 2].max(initial=0)) + 1, np.uint32)
        rank_ids[pairs[:, 2]] = [made for _, made in self.ranks.values()]
        return make_tables(self.vocab, self.byte_ids, (pairs[:, 0], pairs[:, 1], pairs[:, 2]), rank_ids, self.whole)


def _ordinary(vocab: Mapping[int, bytes], special_tokens: Iterable[str]) -> dict[int, bytes]:
    special = {token.encode() for token in special_tokens}
    return {token_id: token for token_id, token in vocab.items() if token not in special}
