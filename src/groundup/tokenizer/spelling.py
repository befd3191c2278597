"""Tokens and merges in printable characters, as GPT-2's files, `tokenizer.json` and GGUF spell them.

The readers here are given texts and ids as a file has them, and say where in the file something is wrong.
"""

import codecs
import reprlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in GPT-2's files: itself, or one from U+0100 on.

    >>> byte_alphabet()[ord("A")], byte_alphabet()[ord(" ")]
    ('A', 'Ġ')
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_TO_ALPHABET = dict(enumerate(byte_alphabet()))
_FROM_ALPHABET = {ord(character): byte for byte, character in _TO_ALPHABET.items()}


def spell(token: bytes) -> str:
    """A token in printable characters.

    >>> spell(b" the")
    'Ġthe'
    """
    return token.decode("latin-1").translate(_TO_ALPHABET)


def unspell(text: str, where: str) -> bytes:
    """The token that is spelled so. ValueError for a character that stands for no byte."""
    try:
        return codecs.charmap_encode(text, "strict", _FROM_ALPHABET)[0]
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: {text[:40]!r} has {text[error.start]!r}, which stands for no byte") from None


def read_tokens(texts: Collection[str], specials: Collection[str], where: str) -> dict[str, bytes]:
    """How each token is spelled -> the token. A special one is spelled as it is."""
    return {text: text.encode() if text in specials else unspell(text, where) for text in texts}


def read_ids(
    ids: Mapping[str, Any], tokens: Mapping[str, bytes], specials: Mapping[str, int], where: str
) -> dict[int, bytes]:
    """The vocabulary, special tokens included: some files do not list them with the others."""
    wrong = next((text for text, token_id in ids.items() if type(token_id) is not int), None)
    if wrong is not None:
        raise ValueError(f"{where}[{wrong[:40]!r}]: expected int, found {reprlib.repr(ids[wrong])}")
    vocab: dict[int, bytes] = {token_id: tokens[text] for text, token_id in ids.items()}
    for text, token_id in ids.items() if len(vocab) < len(ids) else ():
        if vocab[token_id] != tokens[text]:
            raise ValueError(f"{where}[{text[:40]!r}]: the id {token_id} is that of {vocab[token_id]!r} too")
    for text, token_id in specials.items():
        if ids.get(text, token_id) != token_id:
            raise ValueError(f"{where}[{text[:40]!r}]: id {ids[text]}, but {token_id} as an added token")
        if vocab.setdefault(token_id, text.encode()) != text.encode():
            raise ValueError(f"added token {text[:40]!r}: the id {token_id} is that of {vocab[token_id]!r} too")
    return vocab


def read_merges(merges: Sequence[Any], tokens: Mapping[str, bytes], where: str) -> list[tuple[bytes, bytes]]:
    """Merges as pairs, or as "left right" strings in GPT-2's files and those of older versions."""
    read: list[tuple[bytes, bytes]] = []
    for number, merge in enumerate(merges):
        halves = merge.split(" ") if isinstance(merge, str) else merge
        try:
            left, right = halves
            read.append((tokens[left], tokens[right]))
        except (KeyError, TypeError, ValueError):
            raise _broken_merge(halves, f"{where}[{number}]", tokens) from None
    stranger = next((number for number, merge in enumerate(merges) if not isinstance(merge, (str, list))), None)
    if stranger is not None:  # an object of two keys can be taken apart like a pair
        raise _broken_merge(merges[stranger], f"{where}[{stranger}]", tokens)
    return read


def _broken_merge(halves: Any, where: str, tokens: Mapping[str, bytes]) -> ValueError:
    if not isinstance(halves, list) or len(halves) != 2 or not all(isinstance(half, str) for half in halves):
        return ValueError(f"{where}: {reprlib.repr(halves)} is not a pair of tokens")
    missing = next(half for half in halves if half not in tokens)
    return ValueError(f"{where}: {missing[:40]!r} is not in the vocabulary")
