"""The three tokenizers that came before byte pairs: characters, bytes and words. Each shows what BPE is for.

Characters need a row for each of Unicode's, of which any one text uses few. Bytes need 256 and make every text as
long as it can be. Words are short sequences, of a vocabulary that never ends: what it lacks is lost.
"""

import math
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from groundup.tokenizer.pretokenize import Pretokenizer, well_formed
from groundup.tokenizer.protocol import check_texts, checked_id

REPLACEMENT = "\ufffd"
UNKNOWN_WORD = "<unk>"
CODE_POINTS = sys.maxunicode + 1  # 1,114,112
_NO_CHARACTER = ("Cn", "Co", "Cs")  # unassigned, private use, surrogates


class CharacterTokenizer:
    """One token per code point.

    Without `characters`, ids are the code points themselves: every text has its ids, in a vocabulary of 1,114,112,
    of which Unicode has assigned about 150,000 (`assigned_characters`). With `characters`, those of a text say, they
    get ids from 1 on in their order, and every other character is id 0, which decodes to U+FFFD: not lossless.

    >>> full = CharacterTokenizer()
    >>> max(full.encode("Hello, 🌍! 你好!")) + 1, full.vocab_size
    (127758, 1114112)
    >>> small = CharacterTokenizer.train(["banana"])
    >>> small.vocab_size, small.encode("nab"), small.encode("x")
    (4, [3, 1, 2], [0])
    """

    name = "character"

    def __init__(self, characters: Iterable[str] | None = None) -> None:
        self.characters: list[str] | None = None if characters is None else [REPLACEMENT, *dict.fromkeys(characters)]
        if self.characters and any(len(character) != 1 for character in self.characters):
            raise ValueError("characters: expected single characters, as in a string")
        self._ids = {character: token for token, character in enumerate(self.characters or ()) if token}
        self.lossless: bool = self.characters is None
        self.unknown: int | None = None if self.lossless else 0

    @classmethod
    def train(cls, texts: Iterable[str]) -> "CharacterTokenizer":
        """The tokenizer of exactly the characters of `texts`, in the order of their code points."""
        check_texts(texts)
        return cls(sorted(set().union(*map(well_formed, texts))))

    @property
    def vocab_size(self) -> int:
        """All code points, or the given characters and one for the unknown."""
        return CODE_POINTS if self.characters is None else len(self.characters)

    def encode(self, text: str) -> list[int]:
        """One id per code point. A surrogate, which UTF-8 cannot express, is taken as U+FFFD."""
        text = well_formed(text)
        if self.characters is None:
            return list(map(ord, text))
        return [self._ids.get(character, 0) for character in text]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. ValueError for an id that is none."""
        checked = (checked_id(token, self.vocab_size) for token in ids)
        characters = self.characters
        return well_formed("".join(map(chr if characters is None else characters.__getitem__, checked)))


@cache
def assigned_characters() -> int:
    """How many characters Unicode has, in the version that this Python knows: without private use and surrogates."""
    return sum(unicodedata.category(chr(point)) not in _NO_CHARACTER for point in range(CODE_POINTS))


class ByteTokenizer:
    r"""One token per byte of UTF-8: 256 ids, nothing unknown, and exactly 1.0 bytes per token.

    Any bytes are allowed, not only those that make valid text:

    >>> tokenizer = ByteTokenizer()
    >>> tokenizer.decode_bytes(tokenizer.encode_bytes(b"\xff\x00\xc3"))
    b'\xff\x00\xc3'
    >>> tokenizer.decode([0xC3, 0xA9, 0xFF])
    'é\ufffd'
    """

    name = "byte"
    lossless = True
    unknown = None
    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        """The UTF-8 bytes of `text`; a surrogate, which has none, is taken as U+FFFD."""
        return list(well_formed(text).encode())

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; what is not valid UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def encode_bytes(self, data: bytes) -> list[int]:
        """Any bytes as ids."""
        return list(data)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids` exactly. ValueError for an id that is none."""
        return bytes(checked_id(token, 256) for token in ids)


class WordTokenizer:
    r"""One token per word, as a regular expression finds words; a word that is not in the vocabulary is lost.

    Id 0 is the unknown word, decoded to `<unk>`: not lossless. `pattern` is one of `PATTERNS` or your own; what it
    does not match are pieces too, so that known words alone come back exactly.

    >>> tokenizer = WordTokenizer.train(["a cat and a hat"])
    >>> tokenizer.encode("a cat and a dog"), tokenizer.decode([5, 3, 2, 1, 0])
    ([5, 3, 2, 1, 0], 'a cat and a<unk>')
    """

    name = "word"
    lossless = False
    unknown = 0

    def __init__(self, words: Iterable[str], pattern: str | None = "gpt2") -> None:
        self._pretokenizer = Pretokenizer(pattern)
        self.words: list[str] = [UNKNOWN_WORD, *dict.fromkeys(words)]
        self._ids = {word: token for token, word in enumerate(self.words) if token}

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int | None = None, pattern: str | None = "gpt2"
    ) -> "WordTokenizer":
        """The most frequent words of `texts`, of equally frequent ones the first in order; all without `vocab_size`.

        ValueError when `vocab_size` leaves no room for the unknown word.
        """
        check_texts(texts)
        if vocab_size is not None and vocab_size < 1:
            raise ValueError(f"vocab_size {vocab_size}: expected at least 1, for the unknown word")
        counts = count_words(texts, pattern)
        return cls(_by_frequency(counts)[: None if vocab_size is None else vocab_size - 1], pattern)

    @property
    def vocab_size(self) -> int:
        """The words and one for the unknown."""
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """One id per word, 0 where it is unknown."""
        return [self._ids.get(word, 0) for word in _words(self._pretokenizer, text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The words of `ids`. ValueError for an id that is none."""
        return "".join(self.words[checked_id(token, self.vocab_size)] for token in ids)


def count_words(texts: Iterable[str], pattern: str | None = "gpt2") -> Counter[str]:
    """How often each word occurs."""
    pretokenizer = Pretokenizer(pattern)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_words(pretokenizer, text))
    return counts


def _words(pretokenizer: Pretokenizer, text: str) -> Iterator[str]:
    for block in pretokenizer.blocks(well_formed(text)):
        yield from pretokenizer.split(block)


def _by_frequency(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda word: (-counts[word], word))


def unknown_rates(
    train: Iterable[str], held_out: Iterable[str], vocab_sizes: Sequence[int], pattern: str | None = "gpt2"
) -> list[tuple[int, float]]:
    """(vocabulary size, share of held-out words that it lacks), for vocabularies of the most frequent words.

    The curve falls ever more slowly and does not reach zero: new text has new words. A size beyond the number of
    words in `train` is as good as that number. ValueError when `held_out` has no words.

    >>> unknown_rates(["a b b"], ["a b c b"], [1, 2, 3, 99], pattern=r"[a-z]| ")
    [(1, 1.0), (2, 0.5714285714285714), (3, 0.2857142857142857), (99, 0.14285714285714285)]
    """
    check_texts(train, "train")
    check_texts(held_out, "held_out")
    ranks = {word: rank for rank, word in enumerate(_by_frequency(count_words(train, pattern)), start=1)}
    seen = count_words(held_out, pattern)
    if not seen:
        raise ValueError("held_out: no words in it; expected at least one")
    at_rank: Counter[float] = Counter()
    for word, count in seen.items():
        at_rank[ranks.get(word, math.inf)] += count
    total = seen.total()
    return [(size, sum(n for rank, n in at_rank.items() if rank >= size) / total) for size in vocab_sizes]


@dataclass(frozen=True)
class UnknownWordScore:
    """A unigram word model's score on held-out text, with unknown words guessed and with them spelled.

    flattered: every unknown word counts as predicted once the model says "unknown", whichever word it was.
    honest: it must then be spelled, byte by byte, as it would have to be to get the text back.
    """

    vocab_size: int
    unknown_rate: float
    flattered_perplexity: float
    honest_perplexity: float
    flattered_bits_per_byte: float
    honest_bits_per_byte: float


def unknown_flatters(
    train: Sequence[str], held_out: Sequence[str], vocab_size: int, pattern: str | None = "gpt2"
) -> UnknownWordScore:
    """What perplexity hides when a vocabulary has an unknown word: a smaller vocabulary "predicts" better.

    Words outside the vocabulary are one symbol to the model, and the rarer words are made to be that symbol, the
    easier it is to guess. The flattered figures therefore improve as the vocabulary shrinks, to perplexity 1 at a
    vocabulary of nothing. The honest ones add the cost of spelling the word by single bytes and an end mark, with
    byte frequencies from the unknown words of `train`. Both models are smoothed by adding one.
    """
    tokenizer = WordTokenizer.train(train, vocab_size, pattern)
    trained, seen = count_words(train, pattern), count_words(held_out, pattern)
    if not seen:
        raise ValueError("held_out: no words in it; expected at least one")
    known = set(tokenizer.words[1:])
    lacking = Counter({word: count for word, count in trained.items() if word not in known})
    unknown = Counter({word: count for word, count in seen.items() if word not in known})
    guess = _unigram_bits(trained, lacking.total(), seen, unknown, tokenizer.vocab_size)
    spell = _spelling_bits(lacking, unknown)
    words, size = seen.total(), sum(count * len(word.encode()) for word, count in seen.items())
    return UnknownWordScore(
        tokenizer.vocab_size,
        unknown.total() / words,
        2 ** (guess / words),
        2 ** ((guess + spell) / words),
        guess / size,
        (guess + spell) / size,
    )


def _unigram_bits(
    trained: Counter[str], lacking: int, seen: Counter[str], unknown: Counter[str], vocab_size: int
) -> float:
    """Bits of all words of `seen`, those of `unknown` as one and the same symbol; add-one smoothing."""
    total = trained.total() + vocab_size
    bits = unknown.total() * math.log2(total / (lacking + 1))
    return bits + math.fsum(n * math.log2(total / (trained[word] + 1)) for word, n in (seen - unknown).items())


def _spelling_bits(lacking: Counter[str], unknown: Counter[str]) -> float:
    """Bits to spell the words of `unknown`, each byte alone and an end mark, as frequent as in `lacking`."""
    end = 256
    counts = Counter({symbol: 1 for symbol in range(end + 1)})
    for word, count in lacking.items():
        for symbol in (*word.encode(), end):
            counts[symbol] += count
    cost = {symbol: -math.log2(count / counts.total()) for symbol, count in counts.items()}
    return math.fsum(n * sum(cost[symbol] for symbol in (*word.encode(), end)) for word, n in unknown.items())
