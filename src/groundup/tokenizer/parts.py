"""What defines a tokenizer, whatever file it came from, and what no such file may exceed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from groundup.tokenizer.bpe import apply_merges, rank_merges, splits
from groundup.tokenizer.vocabulary import ids_of_bytes, ids_of_tokens, place_special_tokens

MAX_FILE_BYTES = 1 << 26

SpecialTokens = Sequence[str] | Mapping[str, int]


@dataclass(frozen=True)
class Parts:
    """What defines a tokenizer: `vocab` includes the special tokens.

    `merges` is None for a vocabulary of ranks (tiktoken's), in which every split of a token into two tokens is a
    merge, ranked by the token's id. `ignore_merges`: a pre-token that is a token is not cut up. `normalizer` is
    "NFC" where text is brought to that form of Unicode before anything else, between special tokens.

    A byte without a token (SmolLM2 lacks 21) disappears from text before any merge, as in Hugging Face.
    """

    vocab: dict[int, bytes]
    merges: list[tuple[bytes, bytes]] | None
    special_tokens: dict[str, int]
    pattern: str
    ignore_merges: bool = False
    normalizer: str | None = None

    def ordinary(self) -> dict[int, bytes]:
        """The vocabulary without the special tokens: what text can encode to."""
        special = set(self.special_tokens.values())
        return {token_id: token for token_id, token in self.vocab.items() if token_id not in special}

    def listed_merges(self) -> list[tuple[bytes, bytes]]:
        """The merges, written out where they follow from the ranks.

        In the order of the ids they make, the list means the same as the ranks to every implementation: a token
        comes about through the last state of its own bytes, and that is one split, whatever stands around it.
        """
        return splits(self.ordinary()) if self.merges is None else self.merges

    def unreached(self) -> bytes | None:
        """A token that its own bytes do not encode to by merges alone, or None where there is none."""
        ids = ids_of_tokens(self.ordinary())
        ranks, byte_ids = rank_merges(self.listed_merges(), ids), ids_of_bytes(ids)
        tokens = (token for token in ids if len(token) > 1)
        return next((t for t in tokens if apply_merges([byte_ids[byte] for byte in t], ranks) != [ids[t]]), None)


def with_special_tokens(
    vocab: Mapping[int, bytes], merges: Collection[tuple[bytes, bytes]], special_tokens: SpecialTokens
) -> tuple[dict[int, bytes], dict[str, int]]:
    """(vocabulary with the special tokens, special token -> id). ValueError where they contradict each other."""
    placed = place_special_tokens(vocab, merges, special_tokens)
    return dict(vocab) | {token_id: token.encode() for token, token_id in placed.items()}, placed


def read_bounded(path: Path) -> bytes:
    """The bytes of a file, after a look at how many there are. ValueError for more than any tokenizer needs."""
    with open(path, "rb") as file:
        size = path.stat().st_size
        data = file.read(MAX_FILE_BYTES + 1) if size <= MAX_FILE_BYTES else b""
    if max(size, len(data)) > MAX_FILE_BYTES:
        raise ValueError(f"{max(size, len(data))} bytes or more; a tokenizer has at most {MAX_FILE_BYTES}")
    return data
