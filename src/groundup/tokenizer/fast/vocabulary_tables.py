"""A vocabulary as the arrays that the kernels read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from groundup.tokenizer.fast.encode_context import ID_BITS, NO_ID, NO_PAIR, NO_RANK

_MULTIPLIER = np.uint64(0x9E37_79B9_7F4A_7C15)
MAX_IDS, MAX_RANKS = 1 << ID_BITS, NO_RANK


@dataclass(frozen=True)
class Tables:
    """Ids of bytes and of ranks, ranks of pairs, and the bytes of every token."""

    byte_ids: np.ndarray  # uint32 [256], NO_ID for a byte without a token
    byte_pairs: np.ndarray  # uint32 [65536], by first << 8 | second
    pairs: np.ndarray  # uint64, see encode_context
    pairs_shift: int
    rank_ids: np.ndarray  # uint32 [ranks]
    offsets: np.ndarray  # int64 [ids + 1]
    token_text: np.ndarray  # uint8
    token_table: np.ndarray  # uint32, empty where pre-tokens are not looked up

    @property
    def num_ids(self) -> int:
        """One more than the largest id."""
        return self.offsets.size - 1


def pair_table(left: np.ndarray, right: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, int]:
    """The hash table of pairs with linear probing, and its shift. Ids below 2^20, ranks below 2^24 - 1.

    There is room behind the end instead of going round to the begin. Entries go in by the order of their hashes,
    which keeps every run of the table sorted and makes the table without a loop over pairs.
    """
    bits = max(4, int(2 * len(left)).bit_length())
    keys = (left.astype(np.uint64) << np.uint64(20)) | right.astype(np.uint64)
    homes = ((keys * _MULTIPLIER) >> np.uint64(64 - bits)).astype(np.int64)
    order = np.argsort(homes, kind="stable")
    count = np.arange(len(order))
    # Entry i goes to its home, or behind entry i - 1: slot[i] = max over j <= i of home[j] + (i - j).
    slots = np.maximum.accumulate(homes[order] - count) + count if len(order) else count
    table = np.full((1 << bits) + 1 + max(0, int(slots[-1]) + 2 - (1 << bits) if len(order) else 0), NO_PAIR, np.uint64)
    table[slots] = (keys[order] << np.uint64(24)) | ranks[order].astype(np.uint64)
    return table, 64 - bits


def byte_pair_ranks(byte_ids: np.ndarray, left: np.ndarray, right: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Rank of each pair of bytes, NO_RANK where it does not merge."""
    present = np.flatnonzero(byte_ids != NO_ID)
    byte_of = np.full(MAX_IDS, -1, np.int64)
    byte_of[byte_ids[present]] = present
    first, second = byte_of[left], byte_of[right]
    found = (first >= 0) & (second >= 0)
    table = np.full(1 << 16, NO_RANK, np.uint32)
    table[(first[found] << 8) | second[found]] = ranks[found]
    return table


def token_bytes(vocab: Mapping[int, bytes], size: int) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all tokens one after the other, and where each begins (int64 [size + 1]); unused ids are empty."""
    tokens = [vocab.get(token_id, b"") for token_id in range(size)]
    offsets = np.zeros(size + 1, np.int64)
    np.cumsum([len(token) for token in tokens], out=offsets[1:])
    return np.frombuffer(b"".join(tokens) + bytes(64), np.uint8), offsets


def make_tables(
    vocab: Mapping[int, bytes],
    byte_ids: Sequence[int | None],
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    rank_ids: np.ndarray,
    whole_tokens: Mapping[bytes, int],
) -> Tables:
    """All tables. A byte without a token has the id None, and disappears from text.

    `pairs` are (left id, right id, rank) of the merges; `whole_tokens` stay whole as pre-tokens.
    """
    left, right, ranks = pairs
    ids = np.array([NO_ID if token is None else token for token in byte_ids], np.uint32)
    table, shift = pair_table(left, right, ranks)
    text, offsets = token_bytes(vocab, max(vocab) + 1)
    return Tables(
        byte_ids=ids,
        byte_pairs=byte_pair_ranks(ids, left, right, ranks),
        pairs=table,
        pairs_shift=shift,
        rank_ids=rank_ids.astype(np.uint32),
        offsets=offsets,
        token_text=text,
        token_table=token_table(whole_tokens),
    )


def token_table(tokens: Mapping[bytes, int]) -> np.ndarray:
    """Hash table of whole tokens: id + 1 at the hash of the bytes; empty for none."""
    if not tokens:
        return np.zeros(0, np.uint32)
    size = 1 << int(2 * len(tokens)).bit_length()
    table = np.zeros(size, np.uint32)
    for token, token_id in tokens.items():
        slot = (hash_of(token) >> 20) & (size - 1)
        while table[slot]:
            slot = (slot + 1) & (size - 1)
        table[slot] = token_id + 1
    return table


def hash_of(data: bytes) -> int:
    """`byte_strings.hash_bytes` in Python."""
    mask = (1 << 64) - 1
    state = (len(data) * int(_MULTIPLIER)) & mask
    for place in range(0, len(data), 8):
        state = ((state ^ int.from_bytes(data[place : place + 8], "little")) * int(_MULTIPLIER)) & mask
        state ^= state >> 29
    return state ^ (state >> 32)
