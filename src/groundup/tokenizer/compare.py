"""Tokenizers side by side: bytes per token on the same texts, per file and per language, with an interval."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

from groundup.tokenizer.pretokenize import Pretokenizer, well_formed
from groundup.tokenizer.protocol import BytePair, TextTokenizer
from groundup.tokenizer.simple import ByteTokenizer, CharacterTokenizer, WordTokenizer
from groundup.tokenizer.tokenizer import Tokenizer

RESAMPLES = 1000
CONFIDENCE = 0.95
ENOUGH_TEXTS = 30  # fewer say too little about their spread; then blocks of them are resampled
BLOCK_CHARACTERS = 1000
_DRAWS_AT_ONCE = 1 << 21

Progress = Callable[[int, int], None]
Kind = Literal["all", "file", "language"]


@dataclass(frozen=True)
class Sample:
    """A text to measure on, the file that it is from, and its language where that is known."""

    text: str
    file: str = ""
    language: str | None = None


@dataclass(frozen=True)
class Counts:
    """One tokenizer's counts on texts, one entry for each; `used` is the number of different ids that occurred."""

    tokens: Int64[np.ndarray, "texts"]
    unknown: Int64[np.ndarray, "texts"]
    used: int


@dataclass(frozen=True)
class Row:
    """One tokenizer on one group of texts.

    bytes_per_token: all bytes by all tokens (the mean over tokens, not over texts).
    low, high: its 95 % interval; None for a single text, which says nothing about others.
    """

    tokenizer: str
    kind: Kind
    group: str
    texts: int
    bytes: int
    characters: int
    tokens: int
    unknown: int
    bytes_per_token: float
    low: float | None
    high: float | None

    @property
    def unknown_rate(self) -> float:
        """Share of the tokens that are the unknown one."""
        return self.unknown / self.tokens

    @property
    def tokens_per_character(self) -> float:
        """How many tokens a code point takes."""
        return self.tokens / self.characters


def count(tokenizer: TextTokenizer, texts: Sequence[str], progress: Progress | None = None) -> Counts:
    """Encode every text. `progress(done, total)` counts texts."""
    tokens, unknown = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int64)
    used: set[int] = set()
    for number, text in enumerate(texts):
        ids = tokenizer.encode(text)
        tokens[number] = len(ids)
        unknown[number] = 0 if tokenizer.unknown is None else ids.count(tokenizer.unknown)
        used.update(ids)
        if progress:
            progress(number + 1, len(texts))
    return Counts(tokens, unknown, len(used))


def ratio_interval(
    numerators: Int64[np.ndarray, "texts"],
    denominators: Int64[np.ndarray, "texts"],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float] | None:
    """The 95 % percentile interval of sum(numerators) / sum(denominators), by drawing the texts anew.

    None for fewer than two texts. Equal seeds draw the same texts, so two tokenizers differ by themselves and not
    by the draw. Efron 1979; a ratio of sums is resampled as a whole, since its parts are correlated.
    """
    size = len(numerators)
    if size < 2:
        return None
    random = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // size)
    ratios: list[float] = []
    for start in range(0, resamples, at_once):
        drawn = random.integers(size, size=(min(at_once, resamples - start), size))
        ratios += (numerators[drawn].sum(1) / denominators[drawn].sum(1)).tolist()
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """The rows, and for each tokenizer how many different ids occurred: what of its vocabulary the texts used."""

    rows: list[Row]
    used: dict[str, int]


def compare(
    tokenizers: Sequence[TextTokenizer],
    samples: Sequence[Sample],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """A row for every tokenizer on all texts, on each file and on each language, in this order.

    Files and languages come only where there are two or more. Empty texts are left out. `progress` is told (name of
    the tokenizer, texts done, total). ValueError when there is no text, and for two tokenizers of one name.
    """
    samples = [sample for sample in samples if sample.text]
    if not samples:
        raise ValueError("no text to compare on: expected at least one that is not empty")
    names = [tokenizer.name for tokenizer in tokenizers]
    if len(set(names)) < len(names):
        raise ValueError(f"two tokenizers of one name: {', '.join(names)}")
    texts = [well_formed(sample.text) for sample in samples]
    counted = {tokenizer.name: count(tokenizer, texts, _named(progress, tokenizer.name)) for tokenizer in tokenizers}
    sizes = np.array([(len(text.encode()), len(text)) for text in texts], np.int64)
    rows = []
    for kind, group, members in _groups(samples):
        for name, counts in counted.items():
            low_high = ratio_interval(sizes[members, 0], counts.tokens[members], resamples, seed) or (None, None)
            rows.append(_row(name, kind, group, sizes[members], counts, members, low_high))
    return Comparison(rows, {name: counts.used for name, counts in counted.items()})


def _row(
    name: str,
    kind: Kind,
    group: str,
    sizes: Int64[np.ndarray, "members 2"],
    counts: Counts,
    members: Int64[np.ndarray, "members"],
    interval: tuple[float | None, float | None],
) -> Row:
    size, characters = sizes.sum(0).tolist()
    tokens, unknown = int(counts.tokens[members].sum()), int(counts.unknown[members].sum())
    return Row(name, kind, group, len(members), size, characters, tokens, unknown, size / tokens, *interval)


def _named(progress: Callable[[str, int, int], None] | None, name: str) -> Progress | None:
    return (lambda done, total: progress(name, done, total)) if progress else None


def _groups(samples: Sequence[Sample]) -> Iterable[tuple[Kind, str, Int64[np.ndarray, "members"]]]:
    yield "all", "all", np.arange(len(samples))
    keys_of: dict[Kind, list[str | None]] = {
        "file": [sample.file for sample in samples],
        "language": [sample.language for sample in samples],
    }
    for kind, keys in keys_of.items():
        names = sorted({key for key in keys if key is not None})
        for name in names if len(names) > 1 else ():
            yield kind, name, np.array([place for place, key in enumerate(keys) if key == name], np.int64)


def four_tokenizers(
    texts: Sequence[str],
    vocab_size: int,
    pattern: str = "gpt2",
    progress: Callable[[str, int, int], None] | None = None,
) -> list[TextTokenizer]:
    """Character (all of Unicode), byte, word (every word of `texts`) and BPE (learned from `texts`)."""
    bpe = Tokenizer.train_from_iterator(texts, vocab_size, pattern=pattern, progress=progress)
    return [CharacterTokenizer(), ByteTokenizer(), WordTokenizer.train(texts, pattern=pattern), BytePair(bpe)]


def part(samples: Sequence[Sample], fraction: float) -> tuple[list[Sample], list[Sample]]:
    """The first `fraction` of each file's texts of each language, to learn from, and the rest, to measure on.

    A group of one text goes to the rest. ValueError for a fraction that is not between 0 and 1, and where nothing
    is left on one side.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"train fraction {fraction}: expected between 0 and 1")
    groups: dict[tuple[str, str | None], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.file, sample.language), []).append(sample)
    cuts = {key: min(int(fraction * len(group)), len(group) - 1) for key, group in groups.items()}
    first = [sample for key, group in groups.items() for sample in group[: cuts[key]]]
    rest = [sample for key, group in groups.items() for sample in group[cuts[key] :]]
    if not first:
        raise ValueError("too little text to learn from one part and measure on another; give more")
    return first, rest


def in_blocks(samples: Sequence[Sample]) -> list[Sample]:
    """The samples, those of a file with few texts (one book, say) in blocks of about 1,000 characters.

    Blocks end where no pre-token of a published pattern goes on, so that their tokens are those of the whole text.
    (Of `pattern` "none" or your own, a few at the ends may differ.)
    """
    per_file: dict[str, list[Sample]] = {}
    for sample in samples:
        per_file.setdefault(sample.file, []).append(sample)
    few = {file for file, found in per_file.items() if len(found) < ENOUGH_TEXTS}
    return [
        Sample(block, sample.file, sample.language)
        for sample in samples
        for block in (blocks(sample.text) if sample.file in few else [sample.text])
    ]


def blocks(text: str, size: int = BLOCK_CHARACTERS) -> list[str]:
    """Consecutive parts of `text` of about `size` characters; longer ones where there is no safe place to cut.

    >>> blocks("one two three", 5)
    ['one', ' two', ' three']
    """
    pretokenizer, found, start, wanted = Pretokenizer("gpt2"), [], 0, size
    while len(text) - start > wanted:
        cut = pretokenizer.last_boundary(text, start, start + wanted)
        if cut > start:
            found.append(text[start:cut])
            start, wanted = cut, size
        else:
            wanted *= 2
    return [*found, text[start:]] if text else []
