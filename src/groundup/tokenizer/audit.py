"""Looking for what is wrong with a vocabulary: tokens that no text reaches, tokens that no text has, uneven treatment.

A token that training text never held keeps the random row that it began with; a prompt that reaches it ("glitch
token") makes a model say anything (Rumbelow & Watkins 2023; Land & Bartolo 2024, arXiv:2405.05417).
"""

import codecs
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

from groundup.config import plural
from groundup.tokenizer.bpe import Ranks, apply_merges, rank_merges
from groundup.tokenizer.compare import Row
from groundup.tokenizer.digits import DigitPolicy, digit_policy
from groundup.tokenizer.pretokenize import Pretokenizer
from groundup.tokenizer.tokenizer import Tokenizer

# Bytes that occur in no UTF-8: overlong forms, and lead bytes beyond U+10FFFF.
NEVER_IN_UTF8 = frozenset([0xC0, 0xC1, *range(0xF5, 0x100)])

Reason = Literal["merges", "pattern", "utf-8", "alone"]
REASONS: dict[Reason, str] = {
    "merges": "its bytes merge to something else, in every text",
    "pattern": "it spans a place where the pattern always cuts",
    "utf-8": "its bytes are in no valid UTF-8",
    "alone": "alone, the pattern cuts it; only inside a longer piece could it come about",
}


@dataclass(frozen=True)
class Unreachable:
    """A token whose bytes do not encode to itself. Certain for every reason but "alone"."""

    id: int
    token: bytes
    reason: Reason

    @property
    def certain(self) -> bool:
        """Whether no text whatever gives this token."""
        return self.reason != "alone"


def unreachable(tokenizer: Tokenizer) -> list[Unreachable]:
    """The tokens that their own bytes do not encode to, in the order of ids. Special tokens are not meant.

    If merging a token's bytes by themselves does not end in the token, no longer text does it either: up to the
    moment when it would come about, every merge inside it happens in the same order in both. A pattern, in contrast,
    may cut a text differently from a part of it. Bytes that UTF-8 never has are passed over: every byte-level
    vocabulary holds them.
    """
    special = set(tokenizer.special_tokens.values())
    ids = {token: token_id for token_id, token in tokenizer.vocab.items()}
    ranks = _ranks(tokenizer, ids)
    pretokenizer = Pretokenizer(tokenizer.pattern)
    found = []
    for token_id, token in sorted(tokenizer.vocab.items()):
        if token_id not in special and len(token) > 1:
            reason = _reason(tokenizer, pretokenizer, ids, ranks, token)
            found += [Unreachable(token_id, token, reason)] if reason else []
    return found


def _ranks(tokenizer: Tokenizer, ids: Mapping[bytes, int]) -> Ranks:
    """The rank of each merge; where ranks are those of the tokens, their ids."""
    ranks = rank_merges(tokenizer.merges, ids)
    return {pair: (token, token) for pair, (_, token) in ranks.items()} if tokenizer.ranked_by_token else ranks


def _reason(
    tokenizer: Tokenizer, pretokenizer: Pretokenizer, ids: Mapping[bytes, int], ranks: Ranks, token: bytes
) -> Reason | None:
    if not is_part_of_utf8(token):
        return "utf-8"
    text = _text_of(token)
    if text is not None and tokenizer.encode(text) == [ids[token]]:
        return None
    if apply_merges([ids[bytes([byte])] for byte in token], ranks) != [ids[token]]:
        return "merges"
    if text is None:
        return None
    return "pattern" if pretokenizer.last_boundary(text, 0, len(text) - 1) > 0 else "alone"


def _text_of(token: bytes) -> str | None:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return None


def is_part_of_utf8(token: bytes) -> bool:
    r"""Whether valid UTF-8 can hold these bytes: the end of a character, whole ones, and the start of one.

    >>> [is_part_of_utf8(token) for token in (b"n\xc3", b"\xa9 a", b"\xc3 a", b"\xff")]
    [True, True, False, False]
    """
    start = next((place for place, byte in enumerate(token) if not 0x80 <= byte < 0xC0), len(token))
    try:
        codecs.getincrementaldecoder("utf-8")().decode(token[start:])
    except UnicodeDecodeError:
        return False
    return start <= 3


def count_tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[int]:
    """How often each id occurs in `texts`."""
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(tokenizer.encode(text))
    return counts


def rare_tokens(
    tokenizer: Tokenizer, counts: Mapping[int, int], unreachable: Iterable[Unreachable] = (), most: int = 0
) -> list[tuple[int, int]]:
    """(id, occurrences) of the tokens that occur at most `most` times, the rarest first, then by id.

    The candidates for an untrained row, if a model learns from such text. Left out are special tokens, the tokens of
    `unreachable` that are certain, and bytes that UTF-8 never has. Many that remain are halfway tokens: merging
    needs them, and then goes on to a longer token nearly every time.
    """
    left_out = {found.id for found in unreachable if found.certain} | set(tokenizer.special_tokens.values())
    left_out |= {
        token_id for token_id, token in tokenizer.vocab.items() if len(token) == 1 and token[0] in NEVER_IN_UTF8
    }
    rare = [(token_id, counts.get(token_id, 0)) for token_id in tokenizer.vocab if token_id not in left_out]
    return sorted(((token_id, n) for token_id, n in rare if n <= most), key=lambda pair: (pair[1], pair[0]))


def leading_space_pairs(tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """(id of "hello", id of " hello") for every word that is there twice, by id.

    To the model they are two unrelated rows: what it learns of one at the start of a line, it does not know of the
    other in the middle of a sentence.
    """
    ids = {token: token_id for token_id, token in tokenizer.vocab.items()}
    words = ((token, token_id) for token, token_id in ids.items() if (text := _text_of(token)) and text[0].isalpha())
    return sorted((token_id, ids[b" " + token]) for token, token_id in words if b" " + token in ids)


def overlapping_specials(special_tokens: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of special tokens of which the second begins inside the first or is a part of it.

    Text that spells both at once can be read in two ways; the leftmost and longest is taken, here as in tiktoken,
    but not everywhere.

    >>> overlapping_specials(["<a>", "<a><b>", ">x", "<c>"])
    [('<a>', '>x'), ('<a><b>', '<a>'), ('<a><b>', '>x'), ('<c>', '>x')]
    """
    pairs = permutations(sorted(special_tokens), 2)
    return [(left, right) for left, right in pairs if right in left or _runs_into(left, right)]


def _runs_into(left: str, right: str) -> bool:
    return any(left.endswith(right[:size]) for size in range(1, min(len(left), len(right))))


@dataclass(frozen=True)
class Tax:
    """What a language pays in tokens, against the reference language: ratios above 1 cost more."""

    language: str
    bytes_per_token: float
    tokens_per_character: float
    per_byte: float
    per_character: float


def language_tax(rows: Sequence[Row], reference: str | None = None) -> tuple[str, list[Tax]]:
    """The reference language, and tokens per byte and character of each against its, the dearest first.

    `rows` are those of one tokenizer. Without `reference` it is English, or where there is none the language that
    takes the fewest tokens per character. Per byte hides that some scripts take three bytes a character; per
    character hides that some say more in one. ValueError when no row is of the reference language.
    """
    languages = {row.group: row for row in rows if row.kind == "language"}
    if reference is None and "en" not in languages and languages:
        reference = min(languages, key=lambda name: languages[name].tokens_per_character)
    reference = reference or "en"
    if reference not in languages:
        known = ", ".join(sorted(languages)) or "none is known"
        raise ValueError(f"no text in the reference language {reference!r}; there are: {known}")
    base = languages[reference]
    taxes = [
        Tax(
            name,
            row.bytes_per_token,
            row.tokens_per_character,
            base.bytes_per_token / row.bytes_per_token,
            row.tokens_per_character / base.tokens_per_character,
        )
        for name, row in languages.items()
    ]
    return reference, sorted(taxes, key=lambda tax: (-tax.per_character, tax.language))


@dataclass(frozen=True)
class Audit:
    """Everything that was looked at. `unseen`, `reference` and `taxes` are None where there was no text for them.

    unseen: (id, occurrences) of the tokens too rare in the texts, of `vocab_size` tokens.
    """

    vocab_size: int
    unreachable: list[Unreachable]
    unseen: list[tuple[int, int]] | None
    digits: DigitPolicy
    leading_space_pairs: list[tuple[int, int]]
    overlapping_specials: list[tuple[str, str]]
    reference: str | None
    taxes: list[Tax] | None

    @property
    def certainly_unreachable(self) -> int:
        """Tokens that no text gives."""
        return sum(found.certain for found in self.unreachable)

    @property
    def unseen_share(self) -> float:
        """Share of the vocabulary that the texts (hardly) have; 0 where there were none."""
        return len(self.unseen or ()) / self.vocab_size


@dataclass(frozen=True)
class Limits:
    """What is let pass. None: anything.

    unreachable: tokens that no text gives. unseen: share of the vocabulary that the texts do not have. tax: tokens
    per character of any language against the reference. overlaps: pairs of special tokens. irregular_digits: whether
    numbers of one length may be cut differently.
    """

    unreachable: int | None = 0
    unseen: float | None = None
    tax: float | None = None
    overlaps: int | None = 0
    irregular_digits: bool = True


def audit(
    tokenizer: Tokenizer,
    texts: Sequence[str] | None = None,
    rows: Sequence[Row] | None = None,
    *,
    rare: int = 0,
    reference: str | None = None,
) -> Audit:
    """Look at everything: the vocabulary by itself, its use on `texts`, and its rows of `compare` by language.

    A token is unseen when it occurs at most `rare` times. ValueError when no row is of the language `reference`.
    """
    lost = unreachable(tokenizer)
    counts = None if texts is None else count_tokens(tokenizer, texts)
    measure, taxes = (None, None) if rows is None else language_tax(rows, reference)
    return Audit(
        tokenizer.vocab_size,
        lost,
        None if counts is None else rare_tokens(tokenizer, counts, lost, rare),
        digit_policy(tokenizer),
        leading_space_pairs(tokenizer),
        overlapping_specials(tokenizer.special_tokens),
        measure,
        taxes,
    )


def findings(found: Audit, limits: Limits) -> list[str]:
    """What goes beyond the limits, a sentence each; empty when all is well."""
    said = []
    if _beyond(lost := found.certainly_unreachable, limits.unreachable):
        said.append(f"{plural(lost, 'token')} that no text gives; let pass: {limits.unreachable:,}")
    if _beyond(found.unseen_share, limits.unseen):
        said.append(f"{found.unseen_share:.1%} of the vocabulary not in the texts; let pass: {limits.unseen:.1%}")
    if _beyond(pairs := len(found.overlapping_specials), limits.overlaps):
        said.append(f"{plural(pairs, 'pair')} of special tokens that overlap; let pass: {limits.overlaps:,}")
    if not (found.digits.regular or limits.irregular_digits):
        said.append(f"numbers are cut {found.digits.verdict}")
    if found.taxes and _beyond((dearest := found.taxes[0]).per_character, limits.tax):
        most = f"{dearest.per_character:.2f} times the tokens per character of {found.reference!r}"
        said.append(f"{dearest.language!r} takes {most}; let pass: {limits.tax:g}")
    return said


def _beyond(value: float, limit: float | None) -> bool:
    return limit is not None and value > limit
