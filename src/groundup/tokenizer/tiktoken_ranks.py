"""tiktoken's rank files: a token in base64 and its rank, which is its id, on each line.

Such a file holds neither its pattern nor its special tokens. Those of the published encodings are known here by
the SHA-256 of their file; tiktoken keeps them under names like 9b5ad71b2ce5302211f9c61530b329a4922fc6a4.
"""

import base64
import binascii
import hashlib
from typing import NamedTuple

from groundup.tokenizer.bpe import splits
from groundup.tokenizer.parts import Parts, SpecialTokens, with_special_tokens
from groundup.tokenizer.pretokenize import canonical
from groundup.tokenizer.vocabulary import MAX_ID, ids_of_bytes, ids_of_tokens

_MAX_LINES = 1 << 20
_MAX_SQUARED_LENGTHS = 1 << 28  # finding all splits of a token takes the square of its length


class Encoding(NamedTuple):
    """What the file of a published encoding leaves out."""

    name: str
    pattern: str
    special_tokens: dict[str, int]


ENCODINGS = {
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930": Encoding(
        "r50k_base", "gpt2", {"<|endoftext|>": 50256}
    ),
    "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069": Encoding(
        "p50k_base", "gpt2", {"<|endoftext|>": 50256}
    ),
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": Encoding(
        "cl100k_base",
        "cl100k",
        {
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d": Encoding(
        "o200k_base", "o200k", {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}
    ),
}


def from_ranks(data: bytes, pattern: str | None = None, special_tokens: SpecialTokens | None = None) -> Parts:
    """Parse a rank file. What is given goes before what is known; without `special_tokens` there are none.

    ValueError for a damaged file, and where no pattern is given and the file is not one of the published ones.
    """
    known = ENCODINGS.get(hashlib.sha256(data).hexdigest())
    if pattern is None and known is None:
        names = ", ".join(encoding.name for encoding in ENCODINGS.values())
        raise ValueError(
            f"a rank file does not say its pattern, and this one is none of {names}, unchanged; "
            "pass pattern= (a name or a regular expression) and special_tokens= (a dict of token to id)"
        )
    if data.count(b"\n") > _MAX_LINES:
        raise ValueError(f"more than {_MAX_LINES} lines; no vocabulary has as many tokens")
    vocab = _read(data)
    ids_of_bytes(ids_of_tokens(vocab))
    if special_tokens is None:
        special_tokens = known.special_tokens if known else {}
    whole, placed = with_special_tokens(vocab, (), special_tokens)
    ordinary = next((token for token, token_id in placed.items() if token_id in vocab), None)
    if ordinary is not None:
        raise ValueError(f"special token {ordinary!r} is a token of the file: every text could forge it")
    name = canonical(pattern or (known.pattern if known else None))
    return Parts(whole, None, placed, name, ignore_merges=True)


def to_ranks(parts: Parts) -> bytes:
    """The rank file by which tiktoken gives the same ids, with the same pattern and special tokens passed to it.

    Ranks are the ids of tokens, so the merges must make tokens in the order of their ids, and every token must
    be what its own bytes encode to: both hold for what `Tokenizer.train` returns, and for GPT-2's files. Other
    splits of a token then never stand side by side. ValueError says which token is in the way.
    """
    ordinary = parts.ordinary()
    ids = ids_of_tokens(ordinary)
    ids_of_bytes(ids)
    if parts.normalizer:
        raise ValueError(f"normalizer {parts.normalizer}: tiktoken encodes text as it is")
    if parts.merges is not None:
        _check_order(parts.merges, ids)
        every_split = parts.ignore_merges and set(parts.merges) == set(splits(ordinary))
        unreached = None if every_split else parts.unreached()
        if unreached is not None:
            raise ValueError(f"token {unreached!r}: its bytes encode to other tokens here, and to it by its rank")
    lines = (b"%b %d\n" % (base64.b64encode(token), token_id) for token_id, token in sorted(ordinary.items()))
    return b"".join(lines)


def looks_like_ranks(start: bytes) -> bool:
    """Whether a file that starts so is a rank file: its first line is base64, a space and a number."""
    token, _, rank = start.partition(b"\n")[0].rstrip().partition(b" ")
    try:
        return rank.isdigit() and bool(_token(token))
    except ValueError:
        return False


def _token(text: bytes) -> bytes:
    return binascii.a2b_base64(text, strict_mode=True)


def _read(data: bytes) -> dict[int, bytes]:
    vocab: dict[int, bytes] = {}
    squares = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line:
            continue
        try:
            text, rank = line.split()
            token, token_id = _token(text), int(rank if rank.isdigit() else b"")
        except ValueError:
            raise ValueError(f"line {number}: {line[:40]!r} is not a token in base64 and its rank") from None
        if token_id in vocab:
            raise ValueError(f"line {number}: the rank {token_id} is that of {vocab[token_id]!r} too")
        squares += len(token) ** 2
        if not 0 <= token_id <= MAX_ID or squares > _MAX_SQUARED_LENGTHS:
            raise ValueError(f"line {number}: rank {token_id}, a token of {len(token)} bytes: too large to be real")
        vocab[token_id] = token
    return vocab


def _check_order(merges: list[tuple[bytes, bytes]], ids: dict[bytes, int]) -> None:
    before = -1
    for left, right in merges:
        token_id = ids.get(left + right, -1)
        if token_id < before:
            raise ValueError(f"merge ({left!r}, {right!r}): makes id {token_id} after id {before}, so ids are no ranks")
        before = token_id
