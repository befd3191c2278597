"""What makes a vocabulary sound: all text can be encoded, and none becomes a special token by itself."""

from collections.abc import Collection, Iterable, Mapping, Sequence

MAX_ID = (1 << 24) - 1  # a model has one row per id: a larger one can only be damage
MAX_SPECIAL_TOKENS = 1 << 14


def ids_of_tokens(vocab: Mapping[int, bytes]) -> dict[bytes, int]:
    """Token -> id. ValueError for a token that occurs twice, is empty, or has an impossible id."""
    ids: dict[bytes, int] = {}
    for token_id, token in vocab.items():
        if not 0 <= token_id <= MAX_ID:
            raise ValueError(f"token {token!r}: id {token_id} is outside 0..{MAX_ID}")
        if not token:
            raise ValueError(f"id {token_id}: the token is empty")
        if token in ids:
            raise ValueError(f"token {token!r} has two ids: {ids[token]} and {token_id}")
        ids[token] = token_id
    return ids


def ids_of_bytes(ids: Mapping[bytes, int]) -> list[int]:
    """The ids of the 256 single bytes. ValueError when one is missing: not every text could be encoded."""
    missing = [byte for byte in range(256) if bytes([byte]) not in ids]
    if missing:
        shown = ", ".join(f"0x{byte:02x}" for byte in missing[:8])
        raise ValueError(f"vocabulary: {len(missing)} of the 256 bytes have no token ({shown}, ...)")
    return [ids[bytes([byte])] for byte in range(256)]


def known_byte_ids(ids: Mapping[bytes, int]) -> list[int | None]:
    """The ids of the 256 single bytes, None for one without a token: it disappears from text (SmolLM2 lacks 21).

    ValueError when none of them has one: no text could be encoded.
    """
    found = [ids.get(bytes([byte])) for byte in range(256)]
    if all(token is None for token in found):
        raise ValueError("vocabulary: none of the 256 bytes has a token")
    return found


def check_special_tokens(special_tokens: Iterable[str]) -> list[str]:
    """The special tokens as a list. ValueError for a bare string, and for an empty or repeated token."""
    if isinstance(special_tokens, str):
        raise ValueError(f"special_tokens: expected a list, got the string {special_tokens!r}")
    tokens = list(special_tokens)
    if len(tokens) > MAX_SPECIAL_TOKENS:
        raise ValueError(f"special_tokens: {len(tokens)} of them; at most {MAX_SPECIAL_TOKENS}")
    seen: set[str] = set()
    for number, token in enumerate(tokens):
        if not token:
            raise ValueError(f"special_tokens[{number}]: the empty string is in every text")
        if token in seen:
            raise ValueError(f"special_tokens[{number}]: {token!r} is there twice")
        if not _is_utf8(token):
            raise ValueError(f"special_tokens[{number}]: {token!r} has surrogates, which no text contains")
        seen.add(token)
    return tokens


def place_special_tokens(
    vocab: Mapping[int, bytes],
    merges: Collection[tuple[bytes, bytes]],
    special_tokens: Sequence[str] | Mapping[str, int],
) -> dict[str, int]:
    """Special token -> id: the given one, else the one it has in `vocab`, else the next after all others.

    ValueError where an id is taken, and where ordinary text would encode to it: a byte, or a merge's result.
    """
    tokens = check_special_tokens(special_tokens)
    given = special_tokens if isinstance(special_tokens, Mapping) else {}
    ids = {token: token_id for token_id, token in vocab.items()}
    ordinary = {left + right for left, right in merges}
    placed: dict[str, int] = {}
    taken: set[int] = set()
    following = max(vocab, default=-1) + 1
    for token in tokens:
        data = token.encode()
        token_id = given.get(token, ids.get(data, following))
        following = max(following, token_id + 1)
        if len(data) == 1 or data in ordinary:
            raise ValueError(f"special token {token!r} is an ordinary token too: every text could forge it")
        if vocab.get(token_id, data) != data or token_id in taken:
            raise ValueError(f"special token {token!r}: id {token_id} belongs to another token")
        if ids.get(data, token_id) != token_id:
            raise ValueError(f"special token {token!r}: given id {token_id}, in the vocabulary {ids[data]}")
        placed[token] = token_id
        taken.add(token_id)
    return placed


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
