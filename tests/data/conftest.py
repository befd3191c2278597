"""A tokenizer of bytes and one special token, and small sets of shards."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest

from groundup.data import ShardSet, write_shards


@dataclass
class Bytes:
    """Every byte is a token; the last id ends a text."""

    vocab_size: int = 257
    shift: int = 0

    @property
    def end_of_text(self) -> int:
        return self.vocab_size - 1

    @property
    def fingerprint(self) -> str:
        return f"bytes {self.vocab_size} {self.shift}"

    def encode(self, text: str) -> list[int]:
        return [byte + self.shift for byte in text.encode()]

    def encode_iterable(self, iterable: Iterable[str]) -> Iterator[int]:
        for text in iterable:
            yield from self.encode(text)


@pytest.fixture(scope="session")
def tokenizer() -> Bytes:
    return Bytes()


@pytest.fixture(scope="session")
def make_shards(tmp_path_factory):
    """A set of `num_tokens` tokens in documents of the given length (end_of_text included)."""

    def make(num_tokens: int, document: int = 10, shard_tokens: int = 10**9) -> ShardSet:
        lengths = [document] * (num_tokens // document) + [num_tokens % document] * (num_tokens % document > 0)
        texts = ["".join(chr(33 + (7 * i + j) % 90) for j in range(n - 1)) for i, n in enumerate(lengths)]
        folder = tmp_path_factory.mktemp("shards")
        return write_shards(texts, Bytes(), folder / "set", shard_tokens=shard_tokens)

    return make
