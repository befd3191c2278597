"""What every tokenizer can do, whatever its units: bytes, characters, words or merged pairs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from groundup.tokenizer.tokenizer import Tokenizer


@runtime_checkable
class TextTokenizer(Protocol):
    """Text to ids and back.

    lossless: `decode(encode(text)) == text` for every text that UTF-8 can express.
    unknown: the id that stands for whatever the vocabulary lacks; None where nothing can be lacking.
    vocab_size: the rows of an embedding, one more than the largest id.
    """

    @property
    def name(self) -> str: ...
    @property
    def lossless(self) -> bool: ...
    @property
    def unknown(self) -> int | None: ...
    @property
    def vocab_size(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Iterable[int]) -> str: ...


@dataclass(frozen=True)
class BytePair:
    """A byte-pair `Tokenizer` under a name, to stand beside the others.

    >>> bpe = BytePair(Tokenizer.train_from_iterator(["the cat in the hat"], 260))
    >>> bpe.name, bpe.vocab_size, bpe.encode("the hat"), bpe.lossless
    ('BPE', 260, [257, 32, 104, 258], True)
    """

    tokenizer: Tokenizer
    name: str = "BPE"
    unknown = None

    @property
    def lossless(self) -> bool:
        """Whether every text comes back."""
        return self.tokenizer.lossless

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self.tokenizer.vocab_size

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; special tokens in it are plain text."""
        return self.tokenizer.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. ValueError for an id that is none."""
        return self.tokenizer.decode(ids)


def checked_id(token: int, vocab_size: int) -> int:
    """The id itself. ValueError when the vocabulary has no such id."""
    if not 0 <= token < vocab_size:
        raise ValueError(f"id {token}: not in the vocabulary, whose ids are below {vocab_size:,}")
    return token


def check_texts(texts: Iterable[str], name: str = "texts") -> None:
    """ValueError for one string where several texts are expected: its characters would pass for texts."""
    if isinstance(texts, str):
        raise ValueError(f"{name}: expected an iterable of texts, got one string; write [text]")
